"""What studies of small models share: settings, equal parameters, clips in memory, and rows that are kept."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from tttvideo.files import replacing
from tttvideo.model import VideoModel
from tttvideo.training.arguments import parse
from tttvideo.training.config import RunConfig
from tttvideo.video.synthetic import Suite
from tttvideo.video.synthetic.suite import Plan

ROOT = Path(__file__).resolve().parents[1]
VAL_SEED = 1_000_000  # clips are measured that no training seed draws


def read_study(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Finished rows; a line cut off by a crash is not one."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Adds a finished row, on a line of its own even where the last one was cut off by a crash."""
    with file.open("a+b") as rows:
        end = rows.seek(0, os.SEEK_END)
        torn = end > 0 and (rows.seek(end - 1), rows.read(1))[1] != b"\n"
        rows.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")


def commit() -> str:
    """The commit of this checkout; with "+" where files differ from it."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


@dataclass
class Partial:
    """An unfinished training on disk, so that one that is killed goes on where it was, to the bit.

    Args:
        file: where it lies
        name: whose it is; another training's file is not gone on with
        seconds: from one time that it is kept to the next
    """

    file: Path
    name: str
    seconds: float = 60.0

    def load(self, model: nn.Module, optimizer: Optimizer) -> tuple[list[float], float, float]:
        """Puts model and optimizer where the training was; returns what ``save`` was given of it."""
        self._saved_at = time.monotonic()
        try:
            kept = torch.load(self.file, weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):  # none, or a damaged one
            return [], 0.0, 0.0
        if kept["name"] != self.name:
            return [], 0.0, 0.0
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"])
        return kept["right"], kept["spent"], kept["cpu"]

    def save(self, model: nn.Module, optimizer: Optimizer, right: list[float], spent: float, cpu: float) -> None:
        if time.monotonic() - self._saved_at < self.seconds:
            return
        kept = {"name": self.name, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        kept |= {"random": torch.get_rng_state(), "right": right, "spent": spent, "cpu": cpu}
        with replacing(self.file) as unfinished:
            torch.save(kept, unfinished)
        self._saved_at = time.monotonic()


def run_all(
    train_row: Callable[..., dict[str, Any]], study: dict[str, Any], todo: Sequence[tuple], rows_file: Path, jobs: int
) -> list[str]:
    """Calls ``train_row(study, *row)`` for each row, in processes of one thread, and appends each result as it is
    finished; returns the rows that could not be run, with the reason."""
    failed = []
    rows_file.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # read by the workers as they start
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
        running = {pool.submit(train_row, study, *row): row for row in todo}
        for future in as_completed(running):
            try:
                row_done = future.result()
            except Exception as error:  # a row that cannot be run must not end the study of the others
                failed.append(f"{running[future]}: {type(error).__name__}: {error}")
                print(failed[-1], flush=True)
                continue
            append_row(rows_file, row_done)
            print(
                json.dumps({name: value for name, value in row_done.items() if not isinstance(value, list | dict)}),
                flush=True,
            )
    return failed


def _one_thread() -> None:
    torch.set_num_threads(1)


def configured(base: dict[str, Any], changed: dict[str, Any]) -> RunConfig:
    """A configuration and what is changed of it (names as on train.py's command line), read as train.py reads them."""
    words = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changed.items()]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(base, file)
        file.flush()
        return parse(["--config", file.name, *words])[0]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def matched(config: RunConfig, base: RunConfig, build: Callable[[RunConfig], VideoModel]) -> RunConfig:
    """The configuration with the feed-forward width that brings its parameters nearest to those of the base."""
    backbone, parameters = config.model.backbone, count(build(base))
    if count(build(config)) == parameters:
        return config

    def with_hidden(hidden: int) -> RunConfig:
        ratio = (hidden + 0.5) / backbone.width  # the block takes the whole part of ratio * width
        return replace(config, model=replace(config.model, backbone=replace(backbone, mlp_ratio=ratio)))

    one, two = (count(build(with_hidden(hidden))) for hidden in (1, 2))
    return with_hidden(max(1, 1 + round((parameters - one) / (two - one))))


def hidden_width(config: RunConfig) -> int:
    return int(config.model.backbone.mlp_ratio * config.model.backbone.width)


def drawn(suite: Suite, plans: Sequence[Plan], split: str, numbers: Sequence[int]) -> Tensor:
    """Clips as they are drawn, without encoding, uint8 [B, F, 3, H, W]."""
    frames = np.stack([suite.draw(made, suite.rng("drawing", split, i)) for made, i in zip(plans, numbers)])
    return torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()


def fill_page(page: Path, parts: dict[str, str]) -> None:
    """Writes ``parts`` into a page, each between ``<!-- rows of NAME -->`` and ``<!-- end of NAME -->``; a page with
    none of the names stays as it is."""
    text = page.read_text(encoding="utf-8")
    filled = re.sub(
        r"(<!-- rows of (\S+) -->\n).*?(<!-- end of \2 -->\n)",
        lambda match: f"{match[1]}{parts[match[2]]}{match[3]}" if match[2] in parts else match[0],
        text,
        flags=re.DOTALL,
    )
    if filled != text:
        page.write_text(filled, encoding="utf-8")


def hexadecimal(hits: Sequence[bool]) -> str:
    """A bit for each clip, the first one highest."""
    return f"{int(''.join('01'[hit] for hit in hits), 2):x}"
