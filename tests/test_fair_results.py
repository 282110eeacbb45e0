"""What the fair comparison publishes: tables, figures in words and costs are those of the rows."""

import re
import statistics
import sys
from dataclasses import replace

import pytest
import yaml

from benchmarks import fair, fair_cost, fair_report, small
from tttvideo.training.arguments import parse
from tttvideo.ttt import TTT, FrameCausal

STUDY = small.read_study(fair.STUDY)
RESULTS = small.ROOT / "docs" / "results"


def test_the_published_tables_are_those_of_the_rows(tmp_path):
    rows = small.read_rows(small.ROOT / STUDY["rows"])
    for page in RESULTS.glob("*.md"):
        (tmp_path / page.name).write_text(page.read_text())
    fair_report.publish(STUDY, rows, tmp_path / "fair.md")
    for page in RESULTS.glob("*.md"):
        again = (tmp_path / page.name).read_text()
        assert page.read_text() == again, f"{page.name}: run python -m benchmarks.fair --table docs/results/fair.md"
    assert {file.name for file in tmp_path.glob("*.png")} == {file.name for file in RESULTS.glob("fair-*.png")}
    assert "| TTT-MLP |" in (RESULTS / "length.md").read_text()
    assert rows
    assert all(len(row["commit"].rstrip("+")) == 12 and row["torch"] for row in rows)
    changed = [fair.job_of(row)[:4] for row in rows if row["commit"].endswith("+")]
    assert changed == [("revisit", "TTT-MLP", 100, rate) for rate in (1.2e-2, 2.4e-2)], "the protocol says why"
    assert len({fair.job_of(row) for row in rows}) == len(rows)
    costs = fair_cost.read_costs(STUDY)
    for task in STUDY["choice"]:
        assert costs.keys() >= {(task, variant) for variant in fair.all_reported(STUDY, rows, task)}, "run fair_cost"
    for row in rows:  # what is not in the table, but made of the same clips
        measured = row["measured"][0]
        figure = "error" if fair.predicts(row) else "top1"
        of_clips = statistics.mean(fair.by_clip(row | {"measured": [measured]}))
        assert of_clips == pytest.approx(measured[figure], abs=5e-5)


@pytest.mark.parametrize(
    ("page", "begin", "task"),
    [
        ("docs/results/index.md", "asked after 128:", "flash-order-16"),
        ("README.md", "tested on 128:", "flash-order-16"),
        ("README.md", "tested on 512:", "flash-order"),
    ],
)
def test_published_figures_in_words_are_those_of_the_rows(page, begin, task):
    """ "DeltaNet raster 0.99, ...": every layer at its best, on the longest clips, best first; as on its own page."""
    layers = fair.at_their_best(STUDY, small.read_rows(small.ROOT / STUDY["rows"]), task)
    means = {own[0]["variant"]: statistics.mean(row["measured"][-1]["top1"] for row in own) for own in layers.values()}
    ranked = sorted(means, key=means.__getitem__, reverse=True)
    expected = ", ".join(f"{name} {means[name]:.2f}" for name in ranked)
    assert f"{begin} {expected}." in re.sub(r"\s+", " ", (small.ROOT / page).read_text())
    assert re.search(
        rf"^- Each as chosen, \d+ frames: {expected}\.$", (RESULTS / "length.md").read_text(), re.MULTILINE
    )


def test_the_lists_in_words_are_those_of_the_intervals():
    """Who is ahead and behind, on the page of recall, and that README has its line of 16 pairs word for word."""
    rows = small.read_rows(small.ROOT / STUDY["rows"])
    best, layers = (find(STUDY, rows, "flash-recall") for find in (fair.all_reported, fair.at_their_best))
    lines = (RESULTS / "recall.md").read_text().splitlines()
    for length, at in ((64, 0), (512, -1)):
        (line,) = (line for line in lines if line.startswith(f"- Right at {length} frames: "))
        for base in (fair.BASE, layers[STUDY["recommended"]][0]["variant"]):
            said = re.search(rf"Ahead of {base}, by intervals without 0: (.*?); behind it: (.*?)\.", line).groups()
            for words, sign in zip(said, ("++", "--"), strict=True):
                expected = {
                    name
                    for name in best.keys() - {base}
                    if len(best[name]) >= 3 and fair.signs(best[name], best[base], at) == sign
                }
                assert set(words.split(", ")) - {"none"} == expected
    (pairs,) = (line.removeprefix("- ") for line in lines if line.startswith("- Of 16 pairs: "))
    figures = {
        own[0]["variant"]: f"{statistics.mean(row['measured'][0]['by']['16'] for row in own):.2f}"
        for own in layers.values()
    }
    assert dict(re.findall(r"(?:: |, )([^,:]+) ([01]\.\d\d)(?=[,.])", pairs)) == figures
    assert pairs in re.sub(r"\s+", " ", (small.ROOT / "README.md").read_text())


def test_the_recipes_have_the_layer_that_the_rows_recommend():
    """No layer of equal state is behind the best in fewer comparisons; the recipes that the protocol names have it."""
    rows, name = small.read_rows(small.ROOT / STUDY["rows"]), STUDY["recommended"]
    assert name in fair_report.least_behind(fair_report.behind_the_best(STUDY, rows))
    for task in ("flash-order-16", "flash-order", "flash-recall"):
        assert fair.at_their_best(STUDY, rows, task)[name][0]["variant"] == f"{name} raster"
    preset = parse(["--config", "layer-delta-rule"])[0].model.backbone.mixer
    assert preset.short_conv == "raster"
    page = (RESULTS / "protocol.md").read_text()
    (sentence,) = re.findall(r"- (.*?) have it since", page)
    recipes = re.findall(r"`([\w-]+)`", sentence)
    assert recipes == ["folder-pretrained", "folder-video-encoder", "long-films"]
    for recipe in recipes:
        config, _ = parse(["--config", recipe])
        assert replace(config.model.backbone.mixer, heads=preset.heads) == preset
        assert config.model.backbone.width / config.model.backbone.mixer.heads == 64
        back, _ = parse(["--config", recipe, "--config", "layer-ttt-mlp"])
        assert back.model.backbone.mixer == TTT(heads=2, chunk=FrameCausal(16))


def test_costs_are_of_layers_that_take_turns(tmp_path, monkeypatch, capsys):
    """Every round begins with another layer; a ratio is the median over rounds, a page takes it from the file."""
    task = {"suite": "flash-order", "parameters": {"frames": 4}, "steps": 1}
    study = STUDY | {"tasks": {"order": task}, "choice": {"order": "order"}, "first": ["TTT-MLP", "GRU"]}
    study["variants"] = {name: STUDY["variants"][name] for name in ("TTT-MLP", "GRU", "attention")}
    study["costs"] = str(tmp_path / "costs.jsonl")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    turns, real = [], fair_cost.one_step

    def noted(study, task, variant):
        step = real(study, task, variant)
        return lambda: (turns.append(variant), step())

    monkeypatch.setattr(fair_cost, "one_step", noted)
    monkeypatch.setattr(sys, "argv", ["fair_cost", "--study", str(tmp_path / "study.yaml"), "--rounds", "2"])
    fair_cost.main()
    first, second, third = "TTT-MLP", "GRU", "attention"
    assert turns == [first, second, third] * 2 + [second, third, first]  # the first three are not measured
    measured = small.read_rows(tmp_path / "costs.jsonl")
    assert {row["variant"]: len(row["cpu_seconds"]) for row in measured} == {first: 2, second: 2, third: 2}
    assert all(0 < seconds < 60 and len(row["commit"]) >= 7 for row in measured for seconds in row["cpu_seconds"])
    assert second in capsys.readouterr().out
    for variant, seconds in ((first, [2.0, 1.0, 4.0]), (second, [1.0, 1.0, 3.0])):
        small.append_row(tmp_path / "made.jsonl", {"task": "order", "variant": variant, "cpu_seconds": seconds})
    costs = fair_cost.read_costs({"costs": str(tmp_path / "made.jsonl")})
    assert fair_cost.against(costs, "order", second) == 0.75
    assert fair_cost.against(costs, "order", third) is None
    monkeypatch.setattr(sys, "argv", ["fair_cost", "--rounds", "0"])
    with pytest.raises(SystemExit):
        fair_cost.main()
    assert "there is at least 1" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["fair_cost", "--study", str(fair.STUDY.with_name("ttt-leads-recall.yaml"))])
    with pytest.raises(SystemExit):
        fair_cost.main()
    assert "does not say where its costs are kept" in capsys.readouterr().err
