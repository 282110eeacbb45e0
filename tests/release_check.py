"""`make release-check`: the built wheel, in an empty environment and an empty folder, makes data, trains, evaluates,
exports and classifies.

    python tests/release_check.py WHEEL PYTHON
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SMALL = [
    "--data.size", "48,48", "--data.max_frames", "16", "--data.batch_size", "4", "--schedule.steps", "3",
    "--schedule.warmup", "0", "--schedule.inner_warmup", "0", "--model.backbone.width", "32",
]  # fmt: skip


def main(wheel: Path, python: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "env"
        subprocess.run([python, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin/pip", "install", "--quiet", wheel], check=True)
        work = Path(folder) / "work"
        work.mkdir()
        tttvideo = str(environment / "bin/tttvideo")
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

        def run(*words: str) -> str:
            print("$ tttvideo", *words, flush=True)
            done = subprocess.run([tttvideo, *words], cwd=work, env=clean, text=True, capture_output=True, check=False)
            print(done.stdout[-2000:], done.stderr[-2000:], flush=True)
            done.check_returncode()
            return done.stdout

        assert "folder" in run("configs")
        run("make-data", "flash-order", "--out", "videos", "--split", "train=12,val=6")
        run("train", "--config", "folder", "--data.root", "videos", "--out", "run", *SMALL)
        run("evaluate", "run", "--data", "videos", "--frames", "8,all")
        run("export", "run", "--out", "exported")
        clip = next((work / "videos").rglob("*.mp4"))
        assert "red-blue" in run("classify", "exported", str(clip))
        assert (work / "run/report.html").is_file()
    print("release-check passed")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else sys.executable)
