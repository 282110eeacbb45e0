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
    "encoder": {"ttt"},
    "tasks": set(),
    "files": set(),
    "printing": set(),
    "serialize": {"files"},
    "recipes": set(),
    "strict_yaml": set(),
    "plain": set(),
    "settings": {"plain", "printing", "strict_yaml"},
    "help": {"settings"},
    "arguments": {"help", "settings", "recipes", "strict_yaml"},
    "video": {"files", "printing"},
    # inference: within VideoModel's own methods, so that people find it there
    "model": {"ttt", "mixers", "backbone", "encoder", "tasks", "plain", "serialize", "video", "inference"},
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
        "video",
        "model",
    },
    "evaluation": {"files", "printing", "ttt", "tasks", "serialize", "video", "model"},
    "export": {"files", "printing", "tasks", "serialize", "video", "model", "evaluation"},
    "inference": {"files", "printing", "encoder", "tasks", "video", "model", "evaluation"},
    "commands": {"arguments", "export", "printing", "recipes", "video"},
    "evaluating": {"evaluation", "files", "printing"},
    "indexing": {"arguments", "printing", "video"},
    "cli": {"arguments", "printing"},
    "__main__": {"cli"},
    "__init__": {"model"},
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


def test_the_layer_needs_torch_only():
    """tttvideo.ttt runs where neither timm nor any video reader is installed."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['timm', 'decord', 'av', 'accelerate', 'jsonargparse']));"
        "import tttvideo.ttt; assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_import_is_cheap():
    heavy = "['decord', 'av', 'timm', 'accelerate', 'matplotlib', 'torchmetrics', 'torchvision', 'triton']"
    code = f"import sys, tttvideo; found = set({heavy}) & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_models_import_without_video_readers():
    """A machine with torch and timm alone can build and run models (benchmarks on a bare GPU machine)."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['decord', 'av', 'jsonargparse']));"
        "from tttvideo.model import VideoModel"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_files_are_read_in_one_sitting():
    long = {p.name: n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
