"""The documentation: the site builds without a broken link, and its navigation has every page."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in navigation] == []


def test_every_class_of_the_reference_exists():
    import importlib

    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for line in page.read_text().splitlines():
            if line.startswith("::: "):
                module, _, name = line.removeprefix("::: ").rpartition(".")
                assert getattr(importlib.import_module(module), name).__doc__, line


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("material", reason="needs the extra docs; `make docs` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert built.returncode == 0, built.stderr
    assert "learning rate at the top of the schedule" in (tmp_path / "reference/training/index.html").read_text()
