"""`tttvideo plan`: what a run costs, before it is begun."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml

from tests.video.clips import write
from tttvideo import cli
from tttvideo.arguments import to_yaml
from tttvideo.planning.allocated import Results, peak_beyond
from tttvideo.planning.plan import PlanConfig, words_of_segments
from tttvideo.planning.trial import Point, extrapolated
from tttvideo.training.arguments import parse
from tttvideo.training.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_in_memory_at_once():
    """In numbers of 1000 float32: results until they are let go, views not counted again, also in a backward pass."""
    kilo, x = 4000, torch.ones(1000, requires_grad=True)

    def forward():
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        del a
        return b.add_(1).t().contiguous().sum()

    def backward():
        x.exp().exp().sum().backward()  # in its last step: exp(x), two gradients, and exp(exp(x)) if still held

    for step, low, high in ((forward, 2 * kilo, 2 * kilo), (backward, 3 * kilo, 4 * kilo)):
        with Results() as results:
            step()
        assert low <= results.peak < high + 100
    product = peak_beyond(lambda: torch.ones(5000, 5000).add_(1).sum(), torch.device("cpu"))
    assert product == pytest.approx(100e6, rel=0.1)


def test_memory_grows_with_the_frames_of_a_batch():
    points = [Point(1, 8, 100 + 8 * 3), Point(1, 16, 100 + 16 * 3)]
    assert extrapolated(points, 80) == 100 + 80 * 3
    assert extrapolated([Point(1, 1, 50), Point(1, 2, 50), Point(1, 4, 70)], 8) == 110  # what grows at the end


@pytest.fixture
def plan(arguments, capsys):
    def run(*words, **settings):
        code = cli.main(["plan", *arguments(*words, evaluate_every=0, **settings)])
        return code, capsys.readouterr()

    return run


def test_of_a_run(plan, tmp_path):
    code, said = plan("--json")
    report = json.loads(said.out)
    assert code == 0, said.err
    assert not (tmp_path / "run").exists(), "nothing is written"
    parts = {part["name"]: part for part in report["parts"]}
    assert report["parameters"] == {"trainable": parts["all"]["parameters"], "frozen": 0}
    assert report["tokens_per_frame"] == 4
    assert report["tokens_per_hour"] == 4 * 10 * 3600  # of videos of 10 Hz
    assert parts["encoder"]["flops"] == 2 * 4 * (3 * 8 * 8) * 16
    memory = report["memory"]
    assert (memory["videos"], memory["frames"]) == (2, 5)
    assert memory["fixed"] >= 4 * 4 * parts["all"]["parameters"]  # weights, their average, two moments of AdamW
    assert memory["peak"] > memory["fixed"] + 4 * parts["all"]["parameters"]  # and the gradient
    assert report["steps_per_epoch"] == 4  # 14 videos by 2, two batches a step
    assert report["trial"]["real"]
    assert report["trial"]["steps"] >= 1
    assert report["trial"]["epoch_seconds"] == pytest.approx(4 * report["trial"]["seconds"])
    assert not report["change"]


def test_folds_are_counted(plan):
    """A model of two learns from half of the 19 videos."""
    text = " ".join(plan("--folds", "2", "--evaluate_every", "1")[1].out.replace("│", " ").split())
    assert "an epoch of 3 steps" in text  # 10 videos by 2, two batches a step
    assert re.search(r"\d the 2 epochs, \d+:\d\d:\d\d the 2 folds, without validation", text)


def test_what_to_change_where_it_does_not_fit(plan, capsys):
    peak = json.loads(plan("--json")[1].out)["memory"]["peak"]
    _, said = plan("--gpu", f"{0.95 * peak / 1e6:.6f}MB")
    text = " ".join(said.out.replace("│", " ").split())
    assert "DOES NOT FIT into" in text
    assert "--data.batch_size 1 --accumulate 4" in text
    (words,) = re.findall(r"(--data.max_frames null --mix.mixup 0 --mix.cutmix 0 --training.segment_frames \d+):", text)
    assert plan("--json", *words.split())[0] == 0


def test_segments_are_suggested_where_they_go(arguments):
    run = Mock(config=parse(arguments("--data.augment.speed", "0.5,2", "--data.balance", "true"))[0])
    run.model.frame_multiple, run.model.config = 1, run.config.model
    words = words_of_segments(run, 4)
    off = "--data.augment.speed 1,1 --data.balance false --mix.mixup 0 --mix.cutmix 0"
    assert words == f"--data.max_frames null {off} --training.segment_frames 4"
    assert parse(arguments("--data.augment.speed", "0.5,2", *words.split()))
    run.model.streams = False
    assert words_of_segments(run, 4) is None
    run = Mock(config=parse(arguments("--data.sampling", "segments=4"))[0])
    assert words_of_segments(run, 4) is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--gpu", "24"], "gpu must be a memory such as 24GB (or GiB, MB, MiB), not '24'"),
        (["--gpu", "0GB"], "gpu must be a memory such as 24GB"),
        (["--gpu", 400 * "9" + "GB"], "gpu must be a memory such as 24GB"),
        (["--data.batch_size", "0"], "data.batch_size is 0; it must be at least 1"),
        (["--gpus", "24GB"], "did you mean 'gpu'?"),
    ],
)
def test_bad_input_is_one_sentence(plan, words, sentence):
    code, said = plan(*words)
    assert code == 2
    assert sentence in said.err
    assert said.err.count("\n") == 1


def test_features_that_are_not_encoded_yet(plan, tmp_path):
    """Their room is said, and no cache is begun."""
    words = ["--model.encoder", "Timm", "--model.encoder.name", "test_vit2", "--model.encoder.pretrained", "false"]
    words += [
        "--model.encoder.grid",
        "[1,1]",
        "--model.encoder.cache",
        str(tmp_path / "cache"),
        "--data.size",
        "[32,32]",
    ]
    code, said = plan(
        "--json", *words, "--mix.cutmix", "0", "--data.augment.flip", "0", "--data.augment.brightness", "0"
    )
    assert code == 0, said.err
    report = json.loads(said.out)
    assert not (tmp_path / "cache").exists()
    assert report["cache"]["lacking"] == 14
    assert report["cache"]["bytes"] == report["cache"]["frames"] * (2 * 64 + 16)
    assert not report["trial"]["real"]
    assert report["parameters"]["frozen"] > 10_000


RECIPES = {
    "folder": ["--data.augment.speed", "[1,1]"],
    "folder-pretrained": ["--model.encoder.pretrained", "false", "--model.encoder.cache", "null",
                          "--data.augment.speed", "[1,1]", "--data.max_frames", "96", "--data.batch_size", "2"],
    "predict-folder": ["--data.max_frames", "12", "--data.batch_size", "2", "--schedule.epochs", "2"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_estimated_memory_is_that_of_real_training_within_a_fifth(recipe, tmp_path):
    """The largest resident set of `tttvideo train` in a process of its own, beyond that of the same run with clips of
    few frames one by one, against the same difference of the estimates. From the two smallest steps alone the estimate
    is as good."""
    noise = np.random.default_rng(0)
    for i in range(8):
        write(tmp_path / "v" / "train" / "ab"[i % 2] / f"{i}.mp4", noise.integers(0, 255, (192, 64, 64, 3), np.uint8))
    words = ["--config", recipe, "--data.root", tmp_path / "v", "--data.workers", "0", "--evaluate_every", "0"]
    small = ["--data.max_frames", "12", "--data.batch_size", "1"]

    def process(command, *more):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-m", "tttvideo", command, *words, *RECIPES[recipe], *more]
        done = subprocess.run(list(map(str, line)), env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def resident(name, *more):
        out = tmp_path / name
        length = () if "--schedule.epochs" in RECIPES[recipe] else ("--schedule.epochs", "1")
        process("train", "--out", out, "--checkpoint.every", "0", "--trackers", "[]", *length, *more)
        return max(json.loads(line)["peak_memory_mb"] for line in (out / "log.jsonl").open()) * 2**20

    memory, least = (json.loads(process("plan", "--json", *more))["memory"] for more in ((), small))
    measured = resident("whole") - resident("least", *small)
    assert memory["peak"] - least["peak"] == pytest.approx(measured, rel=0.2)
    work, points = memory["videos"] * memory["frames"], [Point(**point) for point in memory["measured"][:2]]
    estimate = memory["fixed"] + extrapolated(points, work)
    print(f"{recipe}: {measured / 1e6:.0f} MB measured, {(memory['peak'] - least['peak']) / 1e6:.0f} estimated, "
          f"{(estimate - least['peak']) / 1e6:.0f} from the first two steps")  # fmt: skip
    assert estimate - least["peak"] == pytest.approx(measured, rel=0.2)


def test_plans_settings_do_not_change_how_a_runs_are_written():
    """Though they extend them: config.yaml of a run in the same process is read again."""
    assert issubclass(PlanConfig, RunConfig)
    assert "model" in yaml.safe_load(to_yaml(RunConfig()))
