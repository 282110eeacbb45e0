"""Validation during training reads as `evaluate` does: in segments with carried state, each video once."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import train
import tttvideo.video.segments as segments_module
from tests.helpers import video_model
from tests.training.conftest import write_video
from tests.training.test_run import lines
from tests.video.clips import CountingReader
from tttvideo.encoder import Patches, Tubelets
from tttvideo.mixers import TTT, Bidirectional
from tttvideo.tasks import Classification, Prediction
from tttvideo.training.validation import SEGMENT, score
from tttvideo.ttt import FrameCausal
from tttvideo.video.dataset import DataConfig
from tttvideo.video.index import Index, Video, subset
from tttvideo.video.loader import val_loader

TASKS = [Classification(), Classification(pooling="ema"), Prediction(context=2, residual=False)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five videos of other lengths, one of which cannot be read."""
    root = tmp_path_factory.mktemp("lengths")
    for i, frames in enumerate((7, 23, 4, 12)):
        write_video(root / "val" / "ab"[i % 2] / f"{i}.mp4", 30 * i, frames)
    (root / "val" / "b" / "gone.mp4").write_bytes(b"")
    return DataConfig(root=str(root), size=(16, 16), batch_size=2, workers=0)


build = partial(video_model, size=(16, 16), depth=2)


def scored(model, data, segment, workers=0, first=None):
    from accelerate import Accelerator

    index = data.index("val", labels=["a", "b"], labelled=True)
    loader, batches = val_loader(replace(data, workers=workers), index, segment=segment, first=first)
    return score(model, loader, batches, index, Accelerator(cpu=True)), index


@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize("encoder", [Patches(8), Tubelets(8, frames=2)], ids=str)
def test_segments_score_as_whole_videos_do(data, task, encoder):
    model = build(task, encoder, TTT(heads=2, chunk=FrameCausal(2)))
    whole, index = scored(model, data, 10**6)
    parts, _ = scored(model, data, model.segment_frames(5))
    assert model.training
    assert torch.allclose(parts.rows, whole.rows, rtol=1e-4, atol=1e-4)
    assert parts.rows.abs().max() > 0
    assert torch.equal(parts.scored, whole.scored)
    names = [video.path.rsplit("/", 1)[1] for video in index.videos]
    assert [names[i] for i in range(5) if not parts.scored[i]] == ["gone.mp4"]
    assert [(f.index, "empty" in f.reason) for f in parts.failures] == [(names.index("gone.mp4"), True)]


def test_workers_change_nothing_and_stay(data):
    model = build(Classification())
    from accelerate import Accelerator

    alone, index = scored(model, data, 4)
    loader, batches = val_loader(replace(data, workers=2), index, segment=4)
    for _ in range(2):  # two epochs
        again = score(model, loader, batches, index, Accelerator(cpu=True))
        assert torch.equal(again.rows, alone.rows)


def test_a_model_that_does_not_stream_reads_whole_videos(data):
    model = build(Classification(), mixer=Bidirectional(TTT(heads=2)))
    assert model.segment_frames(SEGMENT) > 10**6
    scores, _ = scored(model, data, model.segment_frames(SEGMENT))
    assert int(scores.scored.sum()) == 4


@pytest.mark.parametrize("task", [Classification(), Prediction()], ids=str)
def test_no_more_than_three_segments_are_held(monkeypatch, task):
    """However long the film: one with the model, one that waits to be called the last, one being read."""
    from accelerate import Accelerator

    model, frames = build(task), 10 * SEGMENT + 7
    film = CountingReader(frames, 16)
    monkeypatch.setattr(segments_module, "open_sized", lambda path, pre: film)
    monkeypatch.setattr(segments_module, "within", lambda reader, *span: torch.arange(len(reader.times)))
    seen, calls = 0, []
    forward = model.forward

    def counted(frames, lengths, state=None):
        nonlocal seen
        calls.append(frames.shape[1])
        assert film.pulled - seen <= 3 * SEGMENT
        seen += int(lengths.sum())
        return forward(frames, lengths, state)

    monkeypatch.setattr(model, "forward", counted)
    index = Index([Video("film", 0, None, None, None)], ["a", "b"], False, "val", "")
    loader, batches = val_loader(DataConfig(root=".", size=(16, 16), workers=0), index, segment=SEGMENT)
    score(model, loader, batches, index, Accelerator(cpu=True))
    assert seen == film.pulled == frames
    assert max(calls) == SEGMENT


def test_capped_validation_says_and_records_so(arguments, capsys):
    caps = {"validation.max_frames": 3, "validation.videos": 2}
    assert train.main(arguments(**caps, schedule__epochs=1, schedule__warmup=2)) == 0
    said = capsys.readouterr().out
    part = "the first 3 frames of 2 of 5 videos"
    assert f"5 videos); best checkpoint: highest val top1 of {part}" in said
    assert "note: schedule.warmup is 2 epochs and the run 1: shortened to 0.5" in said
    run = said.split("best checkpoint ")[-1].split("/checkpoints/")[0]
    index = json.loads((Path(run) / "checkpoints" / "index.json").read_text())
    assert index["rule"] == f"highest val top1 of {part}"
    assert [line["val_n"] for line in lines(Path(run) / "log.jsonl")] == [2]
    saved = json.loads((Path(run) / "checkpoints" / index["best"] / "config.json").read_text())
    assert saved["provenance"]["measured_part"] == part
    # other caps: figures that cannot be compared
    assert train.main(arguments("--resume", "auto", **{"validation.max_frames": 4}, schedule__epochs=2)) == 0
    assert "the best checkpoint so far is forgotten" in capsys.readouterr().out


def test_a_cap_is_the_same_as_shorter_videos(data):
    model = build(Classification())
    capped, index = scored(model, data, 4, first=6)
    whole, _ = scored(model, data, 4)
    for place, video in enumerate(index.videos):
        same = bool(torch.equal(capped.rows[place], whole.rows[place]))
        assert same == (video.path.endswith(("2.mp4", "gone.mp4")))  # 4 frames, and none


def test_caps_that_leave_nothing_are_refused(arguments, capsys):
    assert train.main(arguments(**{"validation.videos": 0})) == 2
    assert "validation.videos must be at least 1" in capsys.readouterr().err
    words = {"model.task": "Prediction", "model.task.context": 4, "validation.max_frames": 3, "data.max_frames": 5}
    assert train.main(arguments(**words, mix__mixup=0.0, mix__cutmix=0.0)) == 2
    assert "validation.max_frames is 3, but Prediction as configured measures" in capsys.readouterr().err


def test_a_subset_is_fixed_and_keeps_the_classes_shares():
    videos = [Video(f"{i}.mp4", int(i >= 60), None, None, None) for i in range(90)]
    index = Index(videos, ["a", "b"], False, "val", "rule")
    part = subset(index, 30, seed=0)
    assert part == subset(index, 30, seed=0)
    assert part != subset(index, 30, seed=1)
    assert Counter(video.label for video in part.videos) == {0: 20, 1: 10}
    assert sorted(part.videos, key=videos.index) == part.videos
    assert len(set(part.videos)) == 30
    assert subset(index, 90, 0) == subset(index, 1000, 0) == index
    unlabelled = index._replace(videos=[video._replace(label=None) for video in videos])
    assert len(set(subset(unlabelled, 7, 0).videos)) == 7


MEMORY = """
import sys, torch, train
from tttvideo.training import memory
words = "--data.size [64,64] --data.batch_size 1 --data.workers 0 --data.max_frames 8 --model.encoder.patch 16 \\
    --model.backbone.width 32 --model.backbone.depth 1 --model.backbone.mixer.heads 2 --schedule.epochs 1 --trackers []"
assert train.main([*words.split(), "--out", sys.argv[1], "--data.root", sys.argv[2]]) == 0
print("peak", memory.peak_mb(torch.device("cpu")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_film(tmp_path):
    peaks = {}
    for frames in (1_000, 12_000):
        root = tmp_path / str(frames)
        for name in "ab":
            write_video(root / "train" / name / "0.mp4", 100, 20, 64)
            write_video(root / "val" / name / "0.mp4", 100, frames, 64)
        argv = [sys.executable, "-c", MEMORY, str(tmp_path / f"run-{frames}"), str(root)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        peaks[frames] = float(done.stdout.split("peak ")[-1])
    print(peaks)
    # 11,000 frames of 64 x 64 are 135 MB as bytes, and more as activations
    assert peaks[12_000] - peaks[1_000] < 40, peaks
