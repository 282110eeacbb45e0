"""From nothing to a comparison, by the commands that the documentation gives, at a small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_from_generated_data_to_a_comparison(tmp_path):
    def run(*words: object) -> str:
        command = [sys.executable, *map(str, words)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    small = {
        "flash-order": ["--frames", 12],
        "flash-recall": ["--frames", 24, "--query", 8, "--pairs", "1,4"],
        "shell-game": ["--frames", 64, "--swaps", 4],
        "count-events": ["--frames", 32, "--most", 4],
    }
    for suite, options in small.items():
        run("-m", "tttvideo", "make-data", suite, "--out", tmp_path / suite, "--split", "train=48,val=24", *options)
    for mixer in ("TTT", "LSTM"):
        words = ["train.py", "--config", "configs/demo.yaml", "--data.root", tmp_path / "flash-recall"]
        words += ["--data.workers", 0, "--schedule.epochs", 1, "--schedule.warmup", 0, "--schedule.inner_warmup", 0]
        words += ["--trackers", "[]", "--out", tmp_path / mixer]
        run(*words, *(["--model.backbone.mixer", "LSTM"] if mixer == "LSTM" else []))
        longer = tmp_path / "longer"
        if not longer.exists():
            recall = ["flash-recall", "--out", longer, "--split", "val=24", "--frames", 48, "--query", 8]
            run("-m", "tttvideo", "make-data", *recall, "--pairs", "1,4")
        for data in ("flash-recall", "longer"):
            words = ["evaluate", tmp_path / mixer, "--data", tmp_path / data, "--workers", 0, "--controls", "all"]
            words += [
                "--sampling",
                "dense",
                "uniform=8",
                "last=8",
                "--views",
                "whole",
                "clips=2x1",
                "--frames",
                "1x,all",
            ]
            run("-m", "tttvideo", *words, "--check-streaming", 2, "--out", tmp_path / "eval" / mixer / data)
        words = ["position", tmp_path / mixer, "--data", longer, "--out", tmp_path / "eval" / mixer / "position"]
        run("-m", "tttvideo", *words)
    runs = [f"{mixer}={tmp_path / 'eval' / mixer}" for mixer in ("TTT", "LSTM")]
    run("-m", "tttvideo", "compare", *runs, "--out", tmp_path / "compared")
    protocols = json.loads((tmp_path / "compared" / "compare.json").read_text())["protocols"]
    wanted = {"length", "position"} | {
        f"{name}, longer" for name in ("frames", "sampling", "views", "tokens", "by pairs", "by depth", "controls")
    }
    assert wanted <= set(protocols)
    assert protocols["length"]["x"] == [24.0, 48.0]
    assert protocols["length"]["trained"] == [24]
    assert (tmp_path / "eval" / "TTT" / "longer" / "report.html").stat().st_size > 100_000
