import json

import pytest

from tttvideo.training.config import ConfigError
from tttvideo.training.run_folder import JsonLines, RunFolder, Skipped, changed_settings


def test_lines_are_cut_back_to_a_position_and_a_torn_line_is_dropped(tmp_path):
    lines = JsonLines(tmp_path / "steps.jsonl")
    for step in range(1, 6):
        lines.append({"step": step, "loss": 1 / step})
    lines.close()
    with lines.path.open("a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in lines.read("step")] == [1, 2, 3, 4, 5]
    lines.cut("step", 3)
    lines.append({"step": 4, "loss": 9.0})
    lines.close()
    kept = [json.loads(line) for line in lines.path.read_text().splitlines()]
    assert [line["step"] for line in kept] == [1, 2, 3, 4]
    assert kept[2]["loss"] == 1 / 3


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    folder = RunFolder(str(tmp_path / "run"), resume=False)
    folder.begin("a: 1\n", epoch=0, step=0)
    with pytest.raises(ConfigError, match="already holds a run: continue it with --resume auto"):
        RunFolder(str(tmp_path / "run"), resume=False)
    assert RunFolder(str(tmp_path / "run"), resume=True).holds_run


def test_no_folder_and_a_file_in_its_place(tmp_path):
    with pytest.raises(ConfigError, match="--out"):
        RunFolder(None, resume=False)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder(str(tmp_path / "file"), resume=False)
    with pytest.raises(ConfigError, match=r"cannot be made, as .*file is a file"):
        RunFolder(str(tmp_path / "file" / "run"), resume=False)


def test_skipped_videos_are_listed_once_also_after_a_restart(tmp_path):
    folder = RunFolder(str(tmp_path), resume=False)
    b, a, c = Skipped("b.mp4", "no frames"), Skipped("a,b.mp4", 'said "no"'), Skipped("c.mp4", "y", 1.5, 2.0)
    assert folder.skip("train", [b, a]) == [b, a]
    assert folder.skip("train", [b]) == []
    cut = c._replace(start=None)
    assert RunFolder(str(tmp_path), resume=True).skip("val", [a, c, cut]) == [c, cut]
    assert RunFolder(str(tmp_path), resume=True).skip("val", [c, cut]) == []
    assert (tmp_path / "skipped.csv").read_text().splitlines() == [
        "path,split,reason,start,end",
        "b.mp4,train,no frames,,",
        '"a,b.mp4",train,"said ""no""",,',
        "c.mp4,val,y,1.5,2.0",
        "c.mp4,val,y,,2.0",
    ]


def test_changed_settings_name_what_moves_the_curve(tmp_path):
    (tmp_path / "config.yaml").write_text("optimizer: {lr: 0.1}\nout: a\ndata: {workers: 0, root: x}\n")
    new = "optimizer: {lr: 0.2}\nout: b\ndata: {workers: 2, root: y}\n"
    assert changed_settings(tmp_path / "config.yaml", new) == ["optimizer.lr: 0.1 -> 0.2"]
    newer = new + "validation: {videos: null, max_frames: 8}\n"  # settings that there were not yet
    assert changed_settings(tmp_path / "config.yaml", newer)[1:] == ["validation.max_frames: None -> 8"]
