"""What the pages say beside the fair comparison: each figure is that of the committed rows."""

import json
import re
import statistics

import pytest

from benchmarks import design, fair, fair_cost, long_clip_report, small, study

RESULTS = small.ROOT / "docs" / "results"
STUDIES = small.ROOT / "configs" / "study"


@pytest.mark.parametrize(
    ("page", "name", "table", "least"),
    [
        ("which-design", "design", design.table, 31),
        ("long-clip", "long-clip", long_clip_report.table, 230),
        ("shell-game", "shell-game", long_clip_report.table, 25),
        ("prediction", "predict-real", study.table, 8),
        ("pretraining", "pretraining", study.table, 4),
    ],
)
def test_the_tables_of_the_older_studies_are_those_of_the_rows(page, name, table, least):
    described = small.read_study(STUDIES / f"{name}.yaml")
    lines = table(described, small.read_rows(small.ROOT / described["rows"])).splitlines()
    wanted = [line for line in lines if line.startswith("| ")]
    assert len(wanted) >= least
    assert not set(wanted) - set((RESULTS / f"{page}.md").read_text().splitlines())


def test_real_videos_are_those_of_the_rows():
    described = small.read_study(STUDIES / "real-videos.yaml")
    rows = small.read_rows(small.ROOT / described["rows"])
    page = (RESULTS / "real-videos.md").read_text()
    for variant in described["variants"]:
        cells = [variant]
        for data in described["experiments"]:
            own = [row for row in rows if (row["data"], row["variant"]) == (data, variant)]
            tops = [row["val_top1"] for row in own]
            cells += [
                f"{statistics.mean(tops):.3f} ({min(tops):.3f}-{max(tops):.3f}, {len(own)} seeds)",
                f"{statistics.mean(row['train_top1'] for row in own):.3f}",
                f"{statistics.median(row['train_seconds'] for row in own):.0f}",
                f"{own[0]['parameters']:,}",
            ]
        assert f"| {' | '.join(cells)} |" in page


def test_speed_beside_the_authors_layer_is_that_of_its_file():
    page = (RESULTS / "cost.md").read_text()
    rows = json.loads((small.ROOT / "benchmarks/results/2026-11-29-authors-cpu.json").read_text())["rows"]
    ratios = {}
    for row in rows:
        step = {"decode": "decode, a token a call"}.get(row["step"], row["step"])
        about = f"| {step} | {row['kind']} | {row['batch']} | {row['tokens']:,} | {row['heads']} "
        (line,) = (line for line in page.splitlines() if line.startswith(about))
        theirs, ours, ratio = (float(cell.replace(",", "")) for cell in line.strip("| ").split(" | ")[-3:])
        assert (theirs, ours) == pytest.approx((1e3 * row["theirs"], 1e3 * row["ours"]), rel=5e-3)
        assert ratio == pytest.approx(row["ratio"], abs=5.1e-3)
        ratios.setdefault((row["step"], row["kind"]), []).append(row["ratio"])
    train, forward = (ratios[step, "linear"] + ratios[step, "mlp"] for step in ("train", "forward"))
    span = "{:.1f} to {:.1f} times"
    said = [f"{span.format(min(train), max(train))} as fast in training", span.format(min(forward), max(forward))]
    said.append(span.format(min(ratios["decode", "mlp"]), max(ratios["decode", "mlp"])))
    assert "Ours is {}, {} in a forward pass, level in decoding with TTT-Linear and {} as fast".format(*said) in page
    assert f"{span.format(min(train), max(train))} as fast](#beside-the-authors-own-layer)" in page
    assert max(abs(ratio - 1) for ratio in ratios["decode", "linear"]) < 0.05, "level"


def test_a_step_of_the_fair_comparison_in_words():
    """ "0.4 to 0.8 of TTT-MLP's": over the tasks, with convolutions along time and along the raster."""
    described = small.read_study(fair.STUDY)
    costs = fair_cost.read_costs(described)
    page = (RESULTS / "cost.md").read_text()
    names = {"TTT delta rule": "takes", "Mamba-2": "Mamba-2's", "attention": "to 64 frames,"}
    for name, before in names.items():
        low, high = map(float, re.search(rf"{before} ([\d.]+) to ([\d.]+)\b", page.split("**Answer.**")[1]).groups())
        variants = (name, f"{name} raster")
        of_base = [share for at in costs if at[1] in variants and (share := fair_cost.against(costs, *at)) is not None]
        assert (low, high) == pytest.approx((min(of_base), max(of_base)), abs=0.05)


def test_ut6_by_recipe_and_layer_is_that_of_the_rows():
    """In the protocol: means and ranges on ``val``, right clips over the four folds; fold 1 without the convolution."""
    rows = [json.loads(line) for line in (RESULTS / "folder.jsonl").read_text().splitlines()]
    said = (RESULTS / "protocol.md").read_text().split("## What the recipes take")[1].split("## Changes")[0]

    def of(recipe, data):
        return [row for row in rows if row["recipe"] == recipe and row["data"].startswith(data)]

    def val(recipe):
        tops = [row["val_top1"] + 1e-9 for row in of(recipe, "ut6, val")]  # a half is rounded up
        assert len(tops) == 3
        return f"{statistics.mean(tops):.2f} ({min(tops):.2f}-{max(tops):.2f}"

    names = ("folder-pretrained, convolutions along the raster", "folder-pretrained, layer-delta-rule")
    raster, time, ttt_mlp = map(val, (*names, "folder-pretrained (as it was: TTT-MLP)"))
    assert f"ut6 gave {raster}), with convolutions along time {time}), with TTT-MLP {ttt_mlp}; three seeds" in said
    delta, folder = "folder, layer-delta-rule", "folder"
    assert f"with TTT delta rule along time ut6 gave {val(delta)}) instead of {val(folder)}) on `val`" in said
    right = [round(sum(row["val_top1"] * row["n"] for row in of(name, "ut6, fold"))) for name in (delta, folder)]
    assert sum(row["n"] for row in of(folder, "ut6, fold")) == 96
    assert f"and {right[0]} instead of {right[1]} of 96 clips over four folds" in said
    firsts = [of(name, "ut6, fold 1")[0]["val_top1"] for name in (f"{delta}, short_conv none", delta, folder)]
    assert "its own had {:.2f} on fold 1, where both have {:.2f}".format(*firsts) in said
    assert firsts[1] == firsts[2]


def test_leads_in_the_log_are_those_of_the_rows():
    """What was tried on four pairs, by what is written before its figure."""
    rows = small.read_rows(small.ROOT / "docs/results/ttt-leads.jsonl")
    tops = {row["variant"]: row["measured"][0]["top1"] for row in rows if row["task"] == "flash-recall-four"}
    text = (small.ROOT / "docs/log.md").read_text()
    (entry,) = re.findall(r"- \*\*What brought TTT ahead on pairs.*?(?=\n- \*\*)", text, re.DOTALL)
    entry = re.sub(r"\s+", " ", entry)
    for words, variant in {
        "(the delta rule, a frame at a time) has": "delta rule by frames",
        "Without its SiLU": "delta rule by frames without silu",
        "with `forget`": "delta rule by frames with forgetting",
        "with `gate`": "delta rule by frames with gate",
        "from a learned W_0": "delta rule by frames from learned W_0",
        "`ConvDepthwise`": "ConvDepthwise",
        "TTT-Linear": "Linear",
        "`normalize_qk` at rate 0.5": "normalize_qk, rate 0.5",
        "with SiLU, gate and forgetting besides": "dressed as Gated DeltaNet",
        "base rate 1": "rate 1",
        "no inner warm-up": "no inner warm-up",
        "attention inside the frame": "frame attention",
        "with these 0.1 gave": "L2, unit keys, unscaled rate 0.1",
        "0.1 gave 0.41, 0.03": "L2, unit keys, unscaled rate 0.03",
    }.items():
        (figure,) = re.findall(rf"{re.escape(words)} (0\.\d\d)", entry)
        assert figure == f"{tops[variant]:.2f}", variant
