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


@pytest.mark.parametrize("page", ["docs/results/length.md", "docs/results/index.md", "README.md"])
def test_published_figures_in_words_are_those_of_the_rows(page):
    """ "TTT-MLP 0.93" in a sentence on the longest clips, and who is said to keep less."""
    rows = small.read_rows(small.ROOT / STUDY["rows"])
    best = fair.all_reported(STUDY, rows, "flash-order-16")
    text = (small.ROOT / page).read_text().replace("\n", " ")
    (sentences,) = re.findall(r"(?:\*\*Answer\.\*\* On clips|asked after 128:|tested on 128\)).*?(?:\*\*|\||$)", text)
    names = "|".join(sorted(STUDY["variants"], key=len, reverse=True))
    said = dict(re.findall(rf"({names}) (0\.\d\d)\b", sentences))
    assert said.keys() >= {"TTT-MLP", "DeltaNet", "RWKV-7", "GRU", "attention", "Mamba-2", "linear attention"}
    for name, value in said.items():
        assert value == f"{statistics.mean(row['measured'][-1]['top1'] for row in best[name]):.2f}", name
    for name in said.keys() - {fair.BASE}:
        expected = "--" if name == "linear attention" else "-+"
        assert signs(best[name], best[fair.BASE], -1) == expected, name


def test_figures_of_long_training_clips_in_words_are_those_of_the_rows():
    """Trained on 64 frames, at 512: every layer with rows is named, and all that are behind TTT-MLP."""
    best = fair.all_reported(STUDY, small.read_rows(small.ROOT / STUDY["rows"]), "flash-order")
    text, said = figures_said("length.md", "Right at 512 frames:")
    at_512 = {name: statistics.mean(row["measured"][-1]["top1"] for row in rows) for name, rows in best.items()}
    assert said == {name: f"{value:.2f}" for name, value in at_512.items()}
    (behind,) = re.findall(r"Behind TTT-MLP, by intervals without 0: (.*?); ahead of it: none\. ", text)
    against = {name: signs(rows, best[fair.BASE], -1) for name, rows in best.items() if name != fair.BASE}
    assert set(behind.replace(" and ", ", ").split(", ")) == {name for name, sign in against.items() if sign == "--"}
    assert "++" not in against.values()


def test_figures_of_recall_in_words_are_those_of_the_rows():
    """Of three seeds each: right answers at the training length, and of 16 pairs; who is said to be ahead."""
    best = fair.all_reported(STUDY, small.read_rows(small.ROOT / STUDY["rows"]), "flash-recall")
    text = (RESULTS / "recall.md").read_text().replace("\n", " ")
    of_pairs = re.compile(r"Of 16 pairs:.*?\. ", re.DOTALL)
    readme = (small.ROOT / "README.md").read_text()
    assert [of_pairs.search(page)[0].replace("\n", " ") for page in (readme, text)] == [of_pairs.search(text)[0]] * 2
    names = "|".join(sorted(STUDY["variants"], key=len, reverse=True))
    figures = {"Right at 64 frames:": lambda row: row["measured"][0]["top1"]}
    figures["Of 16 pairs:"] = lambda row: row["measured"][0]["by"]["16"]
    for begin, figure in figures.items():
        (sentence,) = re.findall(rf"{begin}.*?\. ", text)
        said = dict(re.findall(rf"({names}) (0\.\d\d)\b", sentence))
        assert said == {name: f"{statistics.mean(map(figure, rows)):.2f}" for name, rows in best.items()}
    for length, at in ((64, 0), (512, -1)):
        (said,) = re.findall(rf"Ahead of TTT-MLP at {length} frames[^:]*: (.*?); behind: (.*?)\. ", text)
        for words, sign in zip(said, "+-", strict=True):
            assert set(words.replace(" and ", ", ").split(", ")) == {
                name
                for name, rows in best.items()
                if name != fair.BASE and signs(rows, best[fair.BASE], at) == sign * 2
            }
    ours, cache = best["TTT delta rule"], best["attention"]
    assert [signs(cache, ours, at) for at in (0, -1)] == ["-+", "++"], "level at 64 frames, ahead at 512"
    assert [signs(best["RWKV-7"], ours, at) for at in (0, -1)] == ["-+", "-+"], "level at both"
    means = [f"{statistics.mean(row['measured'][-1]['top1'] for row in rows):.2f}" for rows in (cache, ours)]
    assert f"ahead of it at 512 ({means[0]} and {means[1]})" in text


def test_errors_of_prediction_in_words_are_those_of_the_rows():
    best = fair.all_reported(STUDY, small.read_rows(small.ROOT / STUDY["rows"]), "revisit")
    _, said = figures_said("prediction.md", "Mean error after the first lap:")
    assert said.keys() == best.keys()
    for name, value in said.items():
        mean = statistics.mean(row["measured"][0]["error"] for row in best[name])
        assert value == f"{mean:.{len(value) - 2}f}", name


def figures_said(page, begin):
    """The page's text, and the figure of each layer in the sentence that begins so."""
    text = (RESULTS / page).read_text().replace("\n", " ")
    names = "|".join(sorted(STUDY["variants"], key=len, reverse=True))
    (sentence,) = re.findall(rf"{begin}.*?\. ", text)
    return text, dict(re.findall(rf"({names}) (0\.\d{{2,4}})\b", sentence))


def signs(own, base, at):
    """Of the ends of the difference's interval: "++" is ahead, "--" behind, "-+" level."""
    low, high = map(float, re.findall(r"[+-][.\d]+", fair.difference(own, base, at))[1:])
    return "++" if low > 0 else "--" if high < 0 else "-+"


def test_the_recipes_have_the_layer_that_the_rows_recommend():
    """It is behind no layer of equal state, ahead on recall; the recipes that the protocol names have it."""
    rows, name = small.read_rows(small.ROOT / STUDY["rows"]), STUDY["recommended"]
    for task in STUDY["choice"]:
        best = fair.all_reported(STUDY, rows, task)
        if name not in best:
            continue
        equal = 2 * best[name][0]["state_bytes"]  # attention's cache on long clips is larger
        for variant in best.keys() - {name}:
            if best[variant][0]["state_bytes"] > equal:
                assert variant == "attention", task
                continue
            for at in fair_report.columns(STUDY, task)[1].values():
                better = "--" if fair.predicts(best[name][0]) else "++"
                assert signs(best[variant], best[name], at) != better, (task, variant)
    recall = fair.all_reported(STUDY, rows, "flash-recall")
    behind = {variant for variant in recall.keys() - {name} if signs(recall[variant], recall[name], 0) == "--"}
    assert behind == recall.keys() - {name, "attention", "RWKV-7"}, "recall.md says so"
    preset = parse(["--config", "layer-delta-rule"])[0].model.backbone.mixer
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
