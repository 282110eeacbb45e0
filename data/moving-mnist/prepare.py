"""Moving MNIST in OpenSTL's protocol, as video files: train and val drawn, test from the authors' file.

python data/moving-mnist/prepare.py --mnist FOLDER --test mnist_test_seq.npy --out data/moving-mnist/videos
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs where tttvideo is not installed

from tttvideo.video.mp4 import read_mp4, write_mp4
from tttvideo.video.synthetic import MovingDigits, SuiteError, make


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True, help="folder of MNIST's image files")
    parser.add_argument("--test", type=Path, help="mnist_test_seq.npy; without it there is no split `test`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the videos")
    parser.add_argument("--train", type=int, default=10_000, help="training videos (default: 10000)")
    parser.add_argument("--val", type=int, default=1_000, help="videos to choose the checkpoint on (default: 1000)")
    options = parser.parse_args(argv)
    try:
        test = None if options.test is None else read_test(options.test)
        made = make(MovingDigits(mnist=options.mnist, split=f"train={options.train},val={options.val}"), options.out)
        print(f"{made.out}: {made.written} videos written, {made.kept} were there")
        if test is not None:
            written = write_test(test, options.out / "test")
            print(f"{options.out / 'test'}: {written} videos written, {test.shape[1] - written} were there")
    except (SuiteError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_test(file: Path) -> np.ndarray:
    """The authors' test set, uint8 [20, videos, 64, 64], mapped into memory. Raises SuiteError."""
    try:
        videos = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise SuiteError(f"--test {file} cannot be read ({error}).") from None
    if not isinstance(videos, np.ndarray):
        raise SuiteError(f"--test {file} is an archive; give the authors' file, mnist_test_seq.npy.")
    if videos.ndim != 4 or videos.shape[0] != 20 or videos.shape[2:] != (64, 64) or videos.dtype != np.uint8:
        raise SuiteError(f"--test {file} holds {videos.dtype} {videos.shape}, not uint8 (20, videos, 64, 64).")
    return videos


def write_test(videos: np.ndarray, folder: Path) -> int:
    """Writes those that are not there; returns how many that were. Raises SuiteError where another set lies."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(int(file.stem) for file in folder.glob("?????.mp4"))
    for index in {*there[:1], *there[-1:]}:  # the first and the last, as a sample
        found = read_mp4(folder / f"{index:05d}.mp4")
        if index >= videos.shape[1] or abs(found - videos[:, index, ..., None].astype(int)).max() > 2:
            raise SuiteError(
                f"{folder} holds another test set ({index:05d}.mp4 differs); remove it, or give another --out."
            )
    written = 0
    for index in range(videos.shape[1]):
        file = folder / f"{index:05d}.mp4"
        if not file.exists():
            write_mp4(file, np.repeat(videos[:, index, ..., None], 3, axis=-1), 30.0, quantiser=0)
            written += 1
    return written


if __name__ == "__main__":
    sys.exit(main())
