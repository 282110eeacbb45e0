"""The snippets in data/README.md make lists that can be read, from official annotations in miniature."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tttvideo.video.index import build_index, split_names

README = Path(__file__).resolve().parents[2] / "data" / "README.md"
SNIPPETS = dict(re.findall(r"python - <<'END' > (\S+)\n(.*?)\nEND", README.read_text(encoding="utf-8"), re.DOTALL))


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def ucf101(root: Path) -> None:
    lists = {"train": (8, 10, 11, 25), "test": (1, 7)}
    for split, groups in lists.items():
        clips = [f"{c}/v_{c}_g{g:02}_c01.avi" for c in ("HandstandPushups", "YoYo") for g in groups]
        number = " 1" if split == "train" else ""
        write(root / f"ucfTrainTestlist/{split}list01.txt", "".join(f"{c}{number}\r\n" for c in clips))
    write(root / "UCF-101/YoYo/v_YoYo_g08_c01.avi")


def kinetics(root: Path) -> None:
    for split in ("train", "val"):
        rows = f'abseiling,-a{split},10,20,{split}\n"zumba, x",b{split},3,13,{split}\nzumba,gone,1,2,{split}\n'
        write(root / f"annotations/{split}.csv", "label,youtube_id,time_start,time_end,split\n" + rows)
        write(root / f"{split}/-a{split}_000010_000020.mp4")
        write(root / f"{split}/b{split}_000003_000013.mp4")


def breakfast(root: Path) -> None:
    for person in ("P03", "P16", "P21", "P54"):
        videos = root / "BreakfastII_15fps_qvga_sync" / person
        for name in ("cam01/{}_cereals", "cam01/{}_milk", "stereo/{}_milk_ch0", "stereo/{}_milk_ch1"):
            write(videos / (name.format(person) + ".avi"))
        steps = "1-30 SIL  \n31-150 take_bowl  \n151-428 pour_cereals  \n"
        write(root / f"segmentation_coarse/cereals/{person}_cam01_{person}_cereals.txt", steps)


def coin(root: Path) -> None:
    videos = {f"id{i}": {"subset": "testing" if i % 7 == 6 else "training", "class": "AB"[i % 2]} for i in range(30)}
    write(root / "COIN.json", json.dumps({"database": videos}))
    for i in range(28):
        write(root / f"videos/{i % 2}/id{i}.mp4")


@pytest.mark.parametrize(
    ("name", "prepare", "videos", "splits"),
    [
        ("ucf101_split1.csv", ucf101, 12, ["test", "train", "val"]),
        ("kinetics.csv", kinetics, 4, ["train", "val"]),
        ("breakfast_s1.csv", breakfast, 12, ["test", "train", "val"]),
        ("breakfast_steps.csv", breakfast, 8, []),
        ("coin.csv", coin, 28, ["test", "train", "val"]),
    ],
)
def test_snippet(tmp_path, name, prepare, videos, splits):
    prepare(tmp_path)
    run = subprocess.run(
        [sys.executable, "-"], input=SNIPPETS[name], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (tmp_path / name).write_text(run.stdout)
    index = build_index(tmp_path / name, "all")
    assert (len(index.videos), len(index.labels)) == (videos, 2)
    assert split_names(tmp_path / name) == splits
    if name == "breakfast_steps.csv":
        assert (index.videos[0].start, index.videos[0].end, index.videos[0].group) == (2.0, 10.0, "P03")


def test_every_snippet_is_run():
    assert len(SNIPPETS) == 5
