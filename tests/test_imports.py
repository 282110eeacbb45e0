"""Imports point one way, and importing tttvideo is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "tttvideo"

LAYERS = {
    # part: what it may import besides itself
    "ttt": set(),
    "mixers": {"ttt"},
    "backbone": {"ttt", "mixers"},
    "ttt_lm": {"ttt", "backbone", "files", "printing"},
    "encoder": {"ttt", "files", "video", "printing"},
    "tasks": set(),
    "devices": set(),
    "files": {"printing"},
    "printing": set(),
    "hub": {"printing"},
    "serialize": {"files", "hub"},
    "origin": {"files", "serialize"},
    "recipes": set(),
    "strict_yaml": set(),
    "plain": set(),
    "settings": {"plain", "printing", "strict_yaml"},
    "help": {"settings"},
    "arguments": {"help", "settings", "recipes", "strict_yaml"},
    "video": {"files", "printing"},
    # inference: within VideoModel's own methods, so that people find it there
    "model": {
        *("ttt", "mixers", "backbone", "encoder", "tasks", "plain", "serialize", "synonyms", "video", "inference"),
        "pretrained",
    },
    "pretrained": {"model", "plain", "serialize"},
    "training": {
        "arguments",
        "files",
        "ttt",
        "mixers",
        "backbone",
        "encoder",
        "tasks",
        "plain",
        "serialize",
        "printing",
        "strict_yaml",
        "ttt_lm",
        "video",
        "model",
    },
    "planning": {"encoder", "inspection", "printing", "training", "video"},
    "evaluation": {
        "measuring",
        "origin",
        "devices",
        "files",
        "printing",
        "ttt",
        "tasks",
        "serialize",
        "video",
        "model",
        "pretrained",
    },
    "export": {
        *(
            "hub",
            "files",
            "plain",
            "printing",
            "mixers",
            "tasks",
            "serialize",
            "origin",
            "video",
            "model",
            "pretrained",
        ),
        "evaluation",
    },
    "inspection": {
        *("devices", "files", "printing", "ttt", "video", "model", "pretrained", "evaluation", "inference"),
    },
    "inference": {
        "inspection",
        "measuring",
        "origin",
        *("devices", "files", "printing", "ttt", "encoder", "tasks", "video", "model", "pretrained", "evaluation"),
    },
    "commands": {"arguments", "export", "printing", "recipes", "video"},
    "evaluating": {"evaluation", "files", "measuring", "origin", "printing"},
    "measuring": set(),
    "indexing": {"arguments", "printing", "video"},
    "synonyms": set(),
    "cli": {"arguments", "printing", "synonyms"},
    "__main__": {"cli"},
    "__init__": {"inference", "inspection", "model", "pretrained", "synonyms"},
}


def part_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    package = ("tttvideo", *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *([node.module] if node.module else [])))
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "tttvideo" and len(pieces) > 1 and pieces[1] in LAYERS:
                found.add(pieces[1])
    return found


def test_imports_point_one_way():
    wrong = []
    for path in ROOT.rglob("*.py"):
        part = part_of(path)
        assert part in LAYERS, f"{path.name}: say in LAYERS what {part} may import"
        wrong += [f"{path.relative_to(ROOT)} imports {p}" for p in imported_parts(path) - LAYERS[part] - {part}]
    assert wrong == []


def test_train_py_is_an_entry_and_nothing_more():
    script = ROOT.parent / "train.py"
    imported = [node.module for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    assert imported == ["tttvideo.training.run"]
    assert not [path for path in ROOT.rglob("*.py") if "import train\n" in path.read_text()]


def test_one_importer_of_decord():
    importers = [p.name for p in ROOT.rglob("*.py") if "import decord" in p.read_text()]
    assert importers == ["decode.py"]


IMPORTS = """
import importlib.util, sys

def loaded(*names):
    return [name for name in names if sys.modules.get(name)]

def absent(*names):
    sys.modules.update(dict.fromkeys(names))

import tttvideo
heavy = ["decord", "av", "timm", "accelerate", "matplotlib", "torchmetrics", "torchvision", "triton"]
assert loaded(*heavy) == [], "importing tttvideo is cheap"
absent("timm", "decord", "av", "accelerate", "jsonargparse")
import tttvideo.ttt
assert loaded("torchvision", "torch._dynamo") == [], "the layer needs torch only, and not its compiler"

absent("triton")
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith("triton") else find(name, *rest)
import torch
x = torch.randn(1, 6, 32)
assert tttvideo.ttt.TTT().build(32)(x)[0].isfinite().all()
try:
    tttvideo.ttt.TTT(fused="require").build(32)(x)
except ValueError as error:
    assert "Triton is not installed" in str(error)
else:
    raise AssertionError("fused: require without Triton")
importlib.util.find_spec = find
for name in ("timm", "decord", "av", "accelerate", "jsonargparse", "triton"):
    del sys.modules[name]

import tttvideo.video.decode
assert loaded("decord", "av") == [], "a decoder is loaded where a video is opened"
absent("decord", "av", "jsonargparse")
tttvideo.from_pretrained({tests!r} + "/checkpoints/mlp")  # with torch alone: benchmarks on a bare GPU machine
assert loaded("timm", "torchvision", "torch._dynamo") == [], "each takes seconds, and a second more at every start"
"""


def test_what_importing_needs_and_loads():
    """One fresh process: importing tttvideo is cheap; tttvideo.ttt needs torch only, no Triton either, and says so
    where kernels are required; no decoder is loaded before it is used; models need no reader of videos."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(tests=str(Path(__file__).parent))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_files_are_read_in_one_sitting():
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
