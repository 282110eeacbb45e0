"""The study over frozen features: its settings exist, held-out clips are not learned from, tables of made-up rows."""

from pathlib import Path

import pytest

from benchmarks import frozen, small
from benchmarks.fair import Job, jobs
from tttvideo.training.arguments import parse

STUDIES = [frozen.STUDY, frozen.STUDY.with_name("frozen-ut6.yaml")]


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
            configs.append((config.model, config.data, config.mix, config.optimizer, config.ema, own.get("motion")))
        assert all(a != b for i, a in enumerate(configs) for b in configs[:i])


def test_a_part_of_the_training_clips_is_held_out(tmp_path):
    """Whole recordings where the set names them."""
    lines = [f"s,train,s/{i}.mp4,{i % 2},g{i // 2},x" for i in range(12)] + ["s,val,s/v.mp4,0,h,x"]
    (tmp_path / "manifest.csv").write_text("\n".join(["dataset,split,path,label,group,source", *lines]))
    train, val = frozen.divided({"set": "s"}, tmp_path)
    assert (len(train), [clip.path for clip in val]) == (12, ["s/v.mp4"])
    parts = [frozen.divided({"set": "s", "parts": 3, "part": part}, tmp_path) for part in range(3)]
    assert sorted(clip for _, out in parts for clip in out) == sorted(train)
    for learned, out in parts:
        assert {clip.group for clip in learned}.isdisjoint(clip.group for clip in out)
        assert len(learned) + len(out) == 12


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
    assert "| GRU | 0.500 | 0.750 | 0.500 | 0.003 | 3 | 0.750 (0.750-0.750) | +0.250 (" in text
    assert "| TTT-MLP | 0.500 | 0.500 | 0.500 | 0.001 | 3 | 0.500 (0.500-0.500) | - | 1.000 | 9 | 6 |" in text
    study, rows = small.read_study(STUDIES[1]), []
    while (job := next(jobs(study, rows), None)) is not None:
        rows.append(row(job, 0.75 if job.variant == "Mixup" else 0.5))
    assert len(rows) == 3 * len(study["variants"])
    assert "| Mixup | 12 | 0.750 | +0.250 (" in frozen.table(study, rows)
