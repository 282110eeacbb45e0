"""KTH as OpenSTL cuts it: a list file of windows of 30 frames, from its folders of frame images.

python data/kth/prepare.py KTH_FOLDER > kth.csv
"""

import argparse
import csv
import re
import sys
from pathlib import Path

WINDOW = 30  # frames: 10 are given, 20 predicted
IMAGE_FPS = 25.0  # of a folder of images, as tttvideo reads it
STEPS = {"boxing": 30, "handclapping": 30, "handwaving": 30, "walking": 30, "jogging": 3, "running": 3}
"""How far the next window lies before the last one, by action."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, help="holds a folder for each action, in each a folder of images per video"
    )
    options = parser.parse_args(argv)
    rows = [row for action in STEPS for row in windows(options.folder / action, STEPS[action])]
    if not rows:
        print(
            f"error: {options.folder} has no window of {WINDOW} frames; it should hold "
            "boxing/person01_boxing_d1_uncomp/image_0001.jpg and so on",
            file=sys.stderr,
        )
        return 2
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "label", "start", "end", "group", "split"])
    writer.writerows(rows)
    return 0


def windows(action: Path, step: int) -> list[tuple[str, str, str, str, str, str]]:
    """Rows of one action; start and end lie between frames, so that rounding moves no frame over them."""
    rows = []
    for folder in sorted(path for path in action.glob("person*") if path.is_dir()):
        named = re.match(r"person(\d\d)_", folder.name)
        if named is None:
            print(f"{folder} is left out: its name does not begin with person01_ or the like", file=sys.stderr)
            continue
        person = named[1]
        numbers = [int(found[1]) for file in sorted(folder.iterdir()) if (found := re.match(r"image_(\d+)", file.name))]
        for first in starts(numbers, step):
            span = (f"{max(0.0, (first - 0.5) / IMAGE_FPS):.2f}", f"{(first + WINDOW - 0.5) / IMAGE_FPS:.2f}")
            rows.append((str(folder.resolve()), action.name, *span, f"person{person}", split_of(int(person))))
    return rows


def starts(numbers: list[int], step: int) -> list[int]:
    """Places in ``numbers`` at which windows of consecutive frames begin, found from the end backwards."""
    found, last = [], len(numbers) - 1
    while last >= WINDOW - 1:
        first = last - WINDOW + 1
        if numbers[last] - numbers[first] == WINDOW - 1:
            found.append(first)
            last -= step - 1
        last -= 1
    return found[::-1]


def split_of(person: int) -> str:
    return "test" if person >= 17 else "val" if person >= 15 else "train"


if __name__ == "__main__":
    sys.exit(main())
