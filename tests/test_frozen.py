"""The study over frozen features: its settings exist, held-out clips are not learned from, tables of made-up rows."""

import re
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import frozen, small
from benchmarks.fair import Job, by_clip, jobs, reported
from tttvideo.training.arguments import parse

STUDIES = [frozen.STUDY, frozen.STUDY.with_name("frozen-ut6.yaml"), frozen.STUDY.with_name("frozen-few.yaml")]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_variant_is_a_configuration_of_its_own(file):
    study = small.read_study(file)
    for task in study["tasks"]:
        configs = []
        for variant, own in study["variants"].items():
            job = Job(task, variant, study["choice_seed"], study["rates"][0])
            config, _ = parse(frozen.words(study, job, Path("clips.csv"), Path("run")))
            assert config.optimizer.lr == study["rates"][0]
            assert config.model.encoder.views == 1, "reads files of features"
            other = (own.get("motion"), str(own.get("first")))
            configs.append((config.model, config.data, config.mix, config.optimizer, config.ema, other))
        assert all(a != b for i, a in enumerate(configs) for b in configs[:i])


def test_a_part_of_the_training_clips_is_held_out(tmp_path):
    """Whole recordings where the set names them."""
    lines = [f"s,train,s/{i}.mp4,{i % 2},g{i // 2},x" for i in range(12)] + ["s,val,s/v.mp4,0,h,x"]
    (tmp_path / "manifest.csv").write_text("\n".join(["dataset,split,path,label,group,source", *lines]))
    [(train, val)] = frozen.divisions({"set": "s"}, tmp_path)
    assert (len(train), [clip.path for clip in val]) == (12, ["s/v.mp4"])
    parts = [frozen.divisions({"set": "s", "parts": 3, "part": part}, tmp_path)[0] for part in range(3)]
    assert sorted(clip for _, out in parts for clip in out) == sorted(train)
    for learned, out in parts:
        assert {clip.group for clip in learned}.isdisjoint(clip.group for clip in out)
        assert len(learned) + len(out) == 12
    folds = frozen.divisions({"set": "s", "folds": 4}, tmp_path)
    assert len(folds) == 4
    assert sorted(clip for _, out in folds for clip in out) == sorted([*train, *val])
    for learned, out in folds:
        assert {clip.group for clip in learned}.isdisjoint(clip.group for clip in out)
        assert len(learned) + len(out) == 13


def test_folds_are_measured_together():
    first = {"measured": [{"length": 1, "top1": 0.25, "loss": 1.0, "n": 4, "hits": "1"}], "train_top1": 1.0}
    second = {"measured": [{"length": 1, "top1": 1.0, "loss": 4.0, "n": 2, "hits": "3"}], "train_top1": 0.5}
    same = {"parameters": 9, "steps": 2, "curve": [0.5, 1.0]}
    fits = [first | same | {"diverged_at": None}, second | same | {"diverged_at": 7}]
    assert frozen.together(fits[:1]) == fits[0]
    both = frozen.together(fits)
    assert both["measured"] == [{"length": 1, "top1": 0.5, "loss": 2.0, "n": 6, "hits": "7"}]
    assert (both["train_top1"], both["diverged_at"], both["parameters"]) == (0.75, 7, 9)
    assert by_clip(both) == [0, 0, 0, 1, 1, 1]


def test_few_labels_are_drawn_evenly_and_the_few_are_among_the_more():
    clips = [frozen.Clip(f"s/{i}.mp4", str(i % 3), "g") for i in range(30)]
    draws = {(n, seed): frozen.labelled(clips, n, seed) for n in (3, 6, 15) for seed in (0, 1)}
    for (n, _), (own, rest) in draws.items():
        assert sorted([*own, *rest]) == sorted(clips)
        assert Counter(clip.label for clip in own) == dict.fromkeys("012", n // 3)
    for seed in (0, 1):
        assert set(draws[3, seed][0]) < set(draws[6, seed][0]) < set(draws[15, seed][0])
    assert draws[6, 0] != draws[6, 1]
    for n in (4, 33):
        with pytest.raises(ValueError, match=f"of each of 3 classes, got {n} in all"):
            frozen.labelled(clips, n, 0)


def test_prediction_comes_before_the_few_labels(tmp_path):
    """A row of the study on features that are written here: predicted on the clips without a label, whose encoder and
    backbone then learn from those with one."""
    study = small.read_study(STUDIES[2])
    random = np.random.default_rng(0)
    lines = [f"ut6,{split},{split}-{i}.mp4,{i % 2},g,x" for split in ("train", "val") for i in range(6)]
    (tmp_path / "manifest.csv").write_text("\n".join(["dataset,split,path,label,group,source", *lines]))
    (tmp_path / "ut6-0").mkdir()
    for line in lines:
        path = line.split(",")[2]
        np.save(tmp_path / "ut6-0" / f"{path}.npy", random.normal(size=(9, 5)).astype("float32"))
    study["tasks"]["6 labels"] |= {"labels": 2, "epochs": 2}
    study["variants"]["TTT-MLP, predicted first"]["first"]["schedule.steps"] = 3
    starts = []
    for variant in ("TTT-MLP", "TTT-MLP, predicted first"):
        result = frozen.run(study, Job("6 labels", variant, 0, 1e-3), tmp_path, tmp_path, tmp_path)
        assert (result["steps"], result["measured"][0]["n"]) == (2, 6)
        starts.append(result["measured"][0]["loss"])
    assert starts[0] != starts[1], "what was learned before changes what is learned"
    assert result["first"]["steps"] == 3
    assert result["first"]["n"] == 2, "measured on the clips with a label"
    assert 0 < result["first"]["mse"] < 2 * result["first"]["copy_last_mse"]


def row(job, top1):
    hits = f"{(1 << round(4 * top1)) - 1:x}"
    measured = [{"top1": top1, "loss": 1 - top1, "hits": hits, "n": 4}]
    about = {"train_top1": 1.0, "curve": [0.5, 1.0], "diverged_at": None, "parameters": 9, "cpu_seconds": 6.0}
    return job._asdict() | {"times": 1, "measured": measured, "steps": 2} | about


def test_tables():
    study, rows = small.read_study(STUDIES[0]), []
    while (job := next(jobs(study, rows, "ut6"), None)) is not None:
        rows.append(row(job, 0.75 if (job.variant, job.rate) == ("GRU", 0.003) else 0.5))
    assert {r["seed"] for r in rows if r["task"] == "ut6-part"} == {100}
    text = frozen.table(study, rows)
    of_gru, of_ttt = "0.500 | 0.750 | 0.500 | 0.500 | 0.500", "0.500 | 0.500 | 0.500 | 0.500 | 0.500"
    assert f"| GRU | - | - | {of_gru} | 0.003 | 3 | 0.750 (0.750-0.750) | +0.250 (" in text
    assert f"| TTT-MLP | - | 0.500 | {of_ttt} | 0.001 | 3 | 0.500 (0.500-0.500) | - | 1.000 | 9 | 6 |" in text
    study, rows = small.read_study(STUDIES[1]), []
    while (job := next(jobs(study, rows), None)) is not None:
        rows.append(row(job, 0.75 if job.variant == "Mixup" else 0.5))
    assert len(rows) == 3 * len(study["variants"])
    assert "| Mixup | 12 | 0.750 | +0.250 (" in frozen.table(study, rows)
    study, rows = small.read_study(STUDIES[2]), []
    while (job := next(jobs(study, rows), None)) is not None:
        rows.append(row(job, 0.75 if "first" in job.variant else 0.5))
    assert len(rows) == len(study["variants"]) * (2 * len(study["rates"]) + 3 * len(study["seeds"]))
    assert (
        frozen.table(study, rows).count("| TTT-MLP, predicted first | 0.750 | 0.750 | 0.750 | 0.001 | 3 | 0.750") == 3
    )


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_page_holds_what_the_rows_say(file):
    study = small.read_study(file)
    name = Path(study["rows"]).name
    page = (small.ROOT / "docs" / "results" / "frozen.md").read_text(encoding="utf-8")
    published = page.split(f"<!-- rows of {name} -->\n")[1].split(f"<!-- end of {name} -->\n")[0]
    assert published == f"{frozen.table(study, small.read_rows(small.ROOT / study['rows']))}\n"


@pytest.mark.parametrize("page", ["frozen.md", "real-videos.md"])
def test_figures_in_words_are_those_of_the_rows(page):
    study = small.read_study(STUDIES[0])
    rows = small.read_rows(small.ROOT / study["rows"])
    text = (small.ROOT / "docs" / "results" / page).read_text(encoding="utf-8")

    def means_of(task):
        return {
            variant: statistics.mean(r["measured"][0]["top1"] for r in reported(study, rows, task, variant))
            for variant in study["variants"]
        }

    folds = {variant: f"{mean:.2f}" for variant, mean in means_of("ut6-folds").items()}
    delta, low = folds["TTT delta rule"], folds["TTT-MLP"]
    assert (low, delta) == (min(folds.values()), max(folds.values()))
    assert {
        "frozen.md": f"four folds ({folds['mean']}; TTT delta rule {delta}, DeltaNet and Mamba-2 {folds['DeltaNet']})",
        "real-videos.md": f"{low} (TTT-MLP) to {delta} (TTT delta rule) against {folds['mean']}",
    }[page] in text
    means = means_of("order3")
    names = "|".join(sorted(means, key=len, reverse=True))
    said = dict(re.findall(rf"({names}) (0\.\d\d)\b", text.split("(level)")[0].split("are level")[0]))
    assert said == {name: f"{means[name]:.2f}" for name in means.keys() - {"GRU", "mean", "Mamba-2"}}
    assert re.search(r"(?:Mamba-2|keeps less) \((0\.\d\d)\)", text)[1] == f"{means['Mamba-2']:.2f}"
    assert re.search(r"(?:frames \(|\(level\) against )(0\.\d\d)", text)[1] == f"{means['mean']:.2f}"
    assert re.search(r"(?:no order|did not learn it) \((0\.\d\d)\)", text)[1] == f"{means['GRU']:.2f}"
    assert (small.ROOT / "docs" / "results" / "real-videos.png").exists()
    chart = frozen.drawn(study, rows)
    assert chart["series"]["mean"]["mean"][chart["x"].index("order3")] == means["mean"]
