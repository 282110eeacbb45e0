"""The fair comparison's tables and lists, of rows made here: who is best, ahead, behind, and how sure that is."""

import re
import statistics

import numpy as np
import pytest

from benchmarks import fair, fair_report, small

from .test_fair import STUDY, row


def test_recall_is_compared_at_both_lengths():
    """Each of GRU's clips is right at 64 frames alone, each of the base's at 512 alone."""
    rows = []
    for variant, hits in ((fair.BASE, ("0", "f")), ("GRU", ("f", "0"))):
        rows += [row(fair.Job("flash-recall-four", variant, 100, r), 0.9 if r == 3e-3 else 0.5) for r in STUDY["rates"]]
        for seed in STUDY["seeds"]:
            rows.append(row(fair.Job("flash-recall", variant, seed, 3e-3)))
            for at, bits in ((0, hits[0]), (-1, hits[1])):
                rows[-1]["measured"][at]["hits"] = bits
    (line,) = [line for line in fair_report.reported_table(STUDY, rows, "flash-recall") if line.startswith("| GRU")]
    assert "| +1.000 (+1.000 to +1.000) | -1.000 (-1.000 to -1.000) |" in line


def test_layers_stand_beside_themselves_with_other_convolutions():
    """Each at its own best rate, once all its rates were tried."""
    best = {"Mamba-2 raster": (3e-3, 0.7), "Mamba-2": (6e-3, 0.6), "GRU without convolution": (3e-3, 0.5)}
    rows = []
    for variant, (rate, top1) in best.items():
        rows += [
            row(fair.Job("flash-recall-four", variant, 100, r), top1 if r == rate else 0.4) for r in STUDY["rates"]
        ]
    table = fair_report.by_convolution(STUDY, rows)
    assert table[0] == "| layer | along time | along the raster | none |"
    assert table[2:] == ["| Mamba-2 | 0.60 (0.006) | 0.70 (0.003) |  |", "| GRU |  |  | 0.50 (0.003) |", ""]
    assert len(fair_report.by_convolution(STUDY, rows[1:])) == 4, "of the first a rate is not tried"
    for known, seeds in ((rows, ["Mamba-2", "Mamba-2 raster"]), (rows[1:], ["Mamba-2"]), (rows[:-6], ["Mamba-2"])):
        assert fair.with_seeds(STUDY, known, "flash-recall", ["Mamba-2", "Mamba-2 raster"]) == seeds
    worse = [r | {"measured": [m | {"top1": m["top1"] / 2} for m in r["measured"]]} for r in rows[:5]] + rows[5:]
    assert fair.with_seeds(STUDY, worse, "flash-recall", ["Mamba-2", "Mamba-2 raster"]) == ["Mamba-2"]


def test_a_layer_is_taken_with_the_convolutions_that_are_best_in_the_choice():
    """Once these have all their seeds; and the best layer is sought only among those that have every task."""
    along_time = reported("flash-recall", "TTT delta rule", 0.7, "0")
    raster = reported("flash-recall", "TTT delta rule raster", 0.9, "f")
    rows = along_time + reported("flash-recall", "DeltaNet", 0.8, "f") + reported("flash-recall", "GRU", 0.6, "0")
    for task in ("flash-order-16", "flash-order"):
        rows += reported(task, "TTT delta rule", 0.6, "0") + reported(task, "GRU", 0.6, "0")
    variants = {"TTT delta rule": "TTT delta rule", "DeltaNet": "DeltaNet", "GRU": "GRU"}
    for more, variant in ((raster[:-1], "TTT delta rule"), (raster, "TTT delta rule raster")):
        best = fair.at_their_best(STUDY, rows + more, "flash-recall")
        assert {layer: own[0]["variant"] for layer, own in best.items()} == variants | {"TTT delta rule": variant}
    rows += raster
    assert fair_report.behind_the_best(STUDY, rows) == {}, "of revisit there are no rows"
    study = STUDY | {"choice": {task: at for task, at in STUDY["choice"].items() if task != "revisit"}}
    expected = {"TTT delta rule": [], "GRU": ["flash-recall, 64 frames", "flash-recall, 512 frames"]}
    assert fair_report.behind_the_best(study, rows) == expected
    raster[-3]["state_bytes"] = 1  # then GRU's state is not equal there
    assert fair_report.behind_the_best(study, rows) == {"TTT delta rule": []}
    table = fair_report.beside_recommended(study, rows)
    assert "flash-recall, 64 frames raster | flash-recall, 512 frames raster |" in table[0]
    (line,) = (line for line in table if line.startswith("| GRU |"))
    assert "| +0.000 (+0.000 to +0.000) | +0.000 (+0.000 to +0.000) | -1.000 (-1.000 to -1.000) |" in line
    assert table[-2].endswith(
        "At lengths that are not compared, ahead of TTT delta rule, by intervals without 0: none."
    )
    for made in rows:
        if (made["task"], made["variant"]) == ("flash-order", "GRU"):
            made["measured"][1]["hits"] = "f"
    assert fair_report.beside_recommended(study, rows)[-2].endswith("without 0: flash-order, 128 frames: GRU.")
    whole = {"A": ["x", "y"], "B": ["x"], "C": ["y"]}
    assert fair_report.least_behind(whole) == ["B", "C"]
    assert fair_report.least_behind(whole | {"D": []}) == ["D"]
    for made in rows:
        if (made["task"], made["variant"]) == ("flash-order", "GRU"):
            made["measured"][-1] |= {"top1": 1.0, "hits": "f"}
    (*_, line, _) = fair_report.beside_recommended(study, rows)
    assert "none. Behind it in the fewest comparisons: TTT delta rule (flash-order, 512 frames). At" in line
    lines = fair_report.in_words(study, rows, "flash-recall")
    assert "Ahead of TTT delta rule raster, by intervals without 0: none; behind it: TTT delta rule, GRU." in lines[0]
    fewer = fair_report.in_words(study, rows[:-1], "flash-recall")
    assert not any(
        "Ahead of TTT delta rule raster" in line or "behind it: TTT delta rule raster" in line for line in fewer
    )
    assert "- Not all seeds so far, so not said to be ahead or behind: TTT delta rule raster." in fewer


def test_of_errors_the_smaller_is_ahead():
    """TTT-MLP's is 0.2, attention's 0.1, GRU's 0.3, on every clip."""
    rows = []
    for variant, error in (("TTT-MLP", 0.2), ("attention", 0.1), ("GRU", 0.3)):
        rows += [row(fair.Job("revisit", variant, 100, rate)) for rate in STUDY["rates"]]
        rows += [row(fair.Job("revisit", variant, seed, 6e-3)) for seed in STUDY["seeds"]]
        for made in rows[-8:]:
            of_choice = error + (made["rate"] != 6e-3)
            made["measured"] = [{"error": of_choice, "errors": [of_choice] * 4, "by_lap": [of_choice] * 40}]
    (line, *_) = fair_report.in_words(STUDY, rows, "revisit")
    assert "after the first: attention 0.1000, TTT-MLP 0.2000, GRU 0.3000." in line
    assert "Ahead of TTT-MLP, by intervals without 0: attention; behind it: GRU." in line
    study = STUDY | {"choice": {"revisit": "revisit"}, "recommended": "TTT-MLP"}
    assert fair_report.behind_the_best(study, rows) == {
        "TTT-MLP": ["revisit, all laps after the first"],
        "attention": [],
        "GRU": ["revisit, all laps after the first"],
    }


def reported(task, variant, top1, hits):
    """Its trials and its seeds, with these right answers to four clips."""
    jobs = [fair.Job(STUDY["choice"][task], variant, 100, rate) for rate in STUDY["rates"]]
    made = [row(job, top1, loss=abs(job.rate - 3e-3)) for job in jobs]
    made += [row(fair.Job(task, variant, seed, 3e-3), top1) for seed in STUDY["seeds"]]
    for measured in (m for r in made for m in r["measured"]):
        measured["hits"] = hits
    return made


@pytest.mark.parametrize(("seeds", "left_out"), [(3, 0.18), pytest.param(2, 0.29, marks=pytest.mark.slow)])
def test_how_often_an_interval_of_few_seeds_leaves_0_out(seeds, left_out):
    """Of equal layers, on the same clips: docs/results/protocol.md says so beside "nominally 95 %"."""
    rng = np.random.default_rng(0)
    outside = []
    for _ in range(200):
        hard = rng.random(256)
        layers = [
            [made_of_hits("GRU", seed, hard < 0.8 + 0.06 * rng.standard_normal()) for seed in range(seeds)]
            for _ in range(2)
        ]
        low, high = map(float, re.findall(r"[+-][.\d]+", fair.difference(*layers))[1:])
        outside.append(not low <= 0 <= high)
    assert statistics.mean(outside) == pytest.approx(left_out, abs=0.05)


def made_of_hits(variant, seed, hits):
    made = row(fair.Job("flash-recall", variant, seed, 3e-3))
    made["measured"] = [{"length": 1, "hits": small.hexadecimal(hits.tolist()), "n": len(hits)}]
    return made
