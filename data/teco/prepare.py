"""TECO's DMLab, `.npz` files of one video each, as MP4 files in the same folders.

python data/teco/prepare.py DMLAB_FOLDER --out data/teco/dmlab
"""

import argparse
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs where tttvideo is not installed

from tttvideo.video.mp4 import write_mp4

FPS = 30.0  # of the files; the sets have no time


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds .npz files, at any depth")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the videos; an interrupted one is continued"
    )
    parser.add_argument("--quantiser", type=int, default=10, help="of H.264: 0 without loss (default: 10)")
    options = parser.parse_args(argv)
    if not 0 <= options.quantiser <= 51:
        parser.error(f"--quantiser {options.quantiser}: it lies between 0 (nothing lost) and 51")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is a file; give a folder")
    files = sorted(options.folder.rglob("*.npz"))
    if not files:
        print(f"error: {options.folder} holds no .npz files", file=sys.stderr)
        return 2
    written, refused = 0, 0
    for file in files:
        out = (options.out / file.relative_to(options.folder)).with_suffix(".mp4")
        if out.exists():
            continue
        try:
            video = read_video(file)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_mp4(out, video, FPS, options.quantiser)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            refused += 1
            print(f"{file} is left out: {error or 'it is cut off'}", file=sys.stderr)
            continue
        written += 1
    print(f"{options.out}: {written} videos written, {len(files) - written - refused} were there, {refused} left out")
    return 2 if refused == len(files) else 0


def read_video(file: Path) -> np.ndarray:
    """The frames of a file, uint8 [F, H, W, 3]. Raises ValueError, or what NumPy raises for damaged files."""
    with file.open("rb") as opened:
        if opened.read(2) != b"PK":
            raise ValueError("it is no .npz archive")
    video = np.load(file)["video"]
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(f"its video is {video.dtype} {video.shape}, not uint8 (frames, height, width, 3)")
    return video


if __name__ == "__main__":
    sys.exit(main())
