"""The study of films whose question comes 9,000 frames after its answer: films in segments, a small row, the table."""

from itertools import islice

import pytest
import torch

from benchmarks import long_recall, small
from benchmarks.design import any_suite, build, plan
from benchmarks.fair import Job, chosen_rate

TASK = "one pair"


@pytest.fixture
def study():
    return small.read_study(long_recall.STUDY)


def test_variants_differ_in_the_layer_or_in_training_and_not_in_size(study):
    suite = any_suite(study["tasks"][TASK], 0)
    configs = [plan(study, TASK, variant) for variant in study["variants"]]
    sizes = [small.count(build(config, suite)) for config in configs]
    trainings = [str(options.get("training")) for options in study["variants"].values()]
    pairs = {(str(config.model.backbone.mixer), own) for config, own in zip(configs, trainings, strict=True)}
    assert len(pairs) == len(configs)
    assert max(sizes) < 1.01 * min(sizes)


def test_measured_films_hide_the_flash_for_9000_frames(study):
    described = study["tasks"][TASK]
    suite = any_suite(described, small.VAL_SEED, **described["measured"][-1])
    assert suite.frames == 10_000
    assert suite.ceiling(range(10_000)) == 1.0
    assert suite.ceiling(range(1_000, 10_000)) == suite.chance, "nothing but the first frames tells"
    assert min(suite.plan("val", i).cause["depth"] for i in range(64)) >= 9_000


def test_films_are_read_side_by_side_from_end_to_end(study):
    suite = any_suite(study["tasks"][TASK], 0, frames=40)
    pieces = list(islice(long_recall.segments(suite, stage=1, rows=2, length=16), 6))
    assert [piece.lengths.tolist() for piece in pieces] == [[16, 16], [16, 16], [8, 8]] * 2
    assert [piece.films.tolist() for piece in pieces] == [[[1, 0], [1, 1]]] * 3 + [[[1, 2], [1, 3]]] * 3
    frames, labels = long_recall.clips(suite, "train", range(2))
    assert torch.equal(torch.cat([piece.frames for piece in pieces[:3]], 1), frames)
    assert torch.equal(pieces[2].labels, labels)


def test_a_row_and_its_table(study):
    described = study["tasks"][TASK]
    described["stages"] = [
        {"steps": 2, "rows": 2, "parameters": {"frames": 20}},
        {"steps": 3, "rows": 2, "parameters": {"frames": 40}},
    ]
    described |= {"measured": [{"frames": 20}, {"frames": 60, "gap": 24}], "val": 6}
    study["segment"] = 16
    base, other = list(study["variants"])[:2]
    study["variants"] = {variant: study["variants"][variant] for variant in (base, other)}
    rates = {base: 1.2e-2, other: 6e-3}
    study["variants"][other] |= {"rate": rates[other]}
    rows = [long_recall.train_row(study, Job(TASK, variant, 0, rate)) for variant, rate in rates.items()]
    for row in rows:
        assert (row["steps"], row["diverged_at"], [len(curve) for curve in row["curves"]]) == (5, None, [2, 3])
        for measured in row["measured"]:
            assert measured["top1"] == round(int(measured["hits"], 16).bit_count() / 6, 4)
    again = long_recall.train_row(study, Job(TASK, base, 0, rates[base]))
    assert [m["loss"] for m in again["measured"]] == [m["loss"] for m in rows[0]["measured"]]
    assert long_recall.table(study, rows[:1]).count("\n| ") == 1, "no row is reported before its rate is chosen"
    choice = [long_recall.train_row(study, Job(TASK, base, 100, 1.2e-2))]
    assert choice[0]["measured"][0]["hits"] != again["measured"][0]["hits"], "other films"
    wanted = [Job(TASK, base, 100, rate) for rate in (6e-3, 2.4e-2)]
    assert list(long_recall.unfinished(study, rows + choice))[:2] == wanted
    choice += [choice[0] | {"rate": rate, "diverged_at": 3} for rate in (6e-3, 2.4e-2)]
    lines = long_recall.table(study, rows + choice).splitlines()
    assert any(line.startswith(f"| {base} | 0.012 | 1 ") and "| 0.006: 0." in line for line in lines)
    line = next(line for line in lines if line.startswith(f"| {other} | 0.006 | 1 "))
    assert line.endswith("| not chosen |")
    assert f"| {rows[1]['measured'][1]['top1']:.3f} | " in line
    assert " to " in line, "an interval"


def test_options_of_a_layer_are_tried_at_its_rate(study):
    rows = long_recall.finished(small.ROOT / study["rows"])
    variants = {variant: options for variant, options in study["variants"].items() if variant.startswith("TTT-MLP,")}
    rates = {variant: options["rate"] for variant, options in variants.items()}
    assert rates == dict.fromkeys(rates, chosen_rate(study, rows, TASK, "TTT-MLP"))
    assert len(rates) == 2


def test_figures_in_words_are_those_of_the_rows(study):
    rows = long_recall.finished(small.ROOT / study["rows"])
    folder = small.ROOT / "docs" / "results"
    page, index = ((folder / name).read_text(encoding="utf-8") for name in ("long-recall.md", "index.md"))
    means = {}
    for variant in study["variants"]:
        own = [row["measured"][-1]["top1"] for row in long_recall.rows_of(study, rows, TASK, variant)]
        assert len(own) == 3
        means[variant] = f"{sum(own) / 3:.2f}"
    ours, rule, delta, mamba = (
        means[variant] for variant in ("TTT-MLP", "TTT delta rule", "Gated DeltaNet", "Mamba-2")
    )
    assert f"**TTT-MLP's does**: {ours} of films" in page
    assert f"**TTT delta rule's does, too**: {rule} (" in page
    assert f"**Gated DeltaNet's does, too**: {delta} (" in page
    assert f"with the reported seeds**: {mamba} (" in page
    assert f"TTT-MLP {ours}, TTT delta rule {rule} and Gated DeltaNet {delta} cannot" in index
    assert f"Mamba-2 {mamba} with the reported seeds" in index
    straight, restart = (means[f"TTT-MLP, {option}"] for option in ("start_gradient straight", "restart 0.1"))
    assert f"With `start_gradient: straight` TTT-MLP has {straight}, with `restart: 0.1` {restart}" in page


def test_the_page_holds_what_the_rows_say(study):
    page = (small.ROOT / "docs" / "results" / "long-recall.md").read_text(encoding="utf-8")
    published = page.split("<!-- rows of long-recall.jsonl -->\n")[1].split("<!-- end of long-recall.jsonl -->")[0]
    assert published == f"{long_recall.table(study, long_recall.finished(small.ROOT / study['rows']))}\n"
