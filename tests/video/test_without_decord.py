"""Where decord has no wheels (macOS, ARM), or does not load, everything of `tttvideo.video` works by PyAV."""

import os
import subprocess
import sys
from pathlib import Path

from tests.video.small import make_video

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import importlib, importlib.util, os, pkgutil, sys
import av, torch  # before the fork: each child imports tttvideo anew

def not_installed():
    sys.modules["decord"] = None
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == "decord" else find(name, *more)

def works():
    import tttvideo.video
    for module in pkgutil.walk_packages(tttvideo.video.__path__, "tttvideo.video."):
        importlib.import_module(module.name)
    from tttvideo.video.dataset import DataConfig
    from tttvideo.video.decode import open_video
    from tttvideo.video.loader import train_loader

    root = {root!r}
    with open_video(root + "/train/a/0.mp4") as video:
        read = (video.read(), video.read([2, 6]))
        print([round(f.float().mean().item() / 5) for frames in read for f in frames])
    if not importlib.util.find_spec("decord"):
        assert video.info.reader == "pyav"
    data = DataConfig(root=root, size=(16, 16), batch_size=4, workers=1, cache="memory")
    batches = list(train_loader(data, data.index("train")))
    print(sum(len(batch.paths) for batch in batches), [failure for batch in batches for failure in batch.failures])

for missing in (not_installed, lambda: None):  # or: it is, and its library does not load
    child = os.fork()
    if child == 0:
        missing()
        works()
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
"""


def test_video_without_decord(tmp_path):
    for name in ("train/a/0.mp4", "train/a/1.mp4", "train/b/0.mp4"):
        make_video(tmp_path / name, 8)
    broken = tmp_path / "broken" / "decord"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('libavcodec.so.58: cannot open shared object file')")
    script = tmp_path / "script.py"
    script.write_text(CODE.format(root=str(tmp_path)))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={"PYTHONPATH": os.pathsep.join([str(broken.parent), str(ROOT)]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[0, 1, 2, 3, 4, 5, 6, 7, 2, 6]", "3 []"] * 2
