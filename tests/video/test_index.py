"""Folders and lists to an Index: layouts, splits, class order, and one sentence for every mistake."""

import os
from collections import Counter
from pathlib import Path

import pytest

from tttvideo.video.dataset import Failure, VideoDataset
from tttvideo.video.decode import VideoError, open_video
from tttvideo.video.folders import NoVideoWarning
from tttvideo.video.index import (
    DataError,
    build_index,
    classes_that_look_equal,
    load_labels,
    save_labels,
    split_names,
    unlearnable_classes,
)
from tttvideo.video.split import seeded_split
from tttvideo.video.transforms import Preprocessing

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "videos"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, *lines: str, touch_files: bool = True) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if touch_files:
        touch(path.parent, "a.mp4")
    return path


def fails(source, split="train", match: str = "", **options) -> str:
    with pytest.raises(DataError, match=match) as caught:
        build_index(source, split, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert not text.endswith(".")
    return text


# Folders


def test_split_folders(tmp_path):
    touch(tmp_path, "train/run/b.mp4", "train/run/a.AVI", "train/jump/c.mkv", "val/jump/d.webm")
    touch(tmp_path, "train/run/notes.txt", "train/run/.hidden.mp4", "train/.git/x.mp4", "readme.txt")
    train = build_index(tmp_path, "train")
    assert [Path(v.path).name for v in train.videos] == ["c.mkv", "a.AVI", "b.mp4"]
    assert train.labels == ["jump", "run"]
    assert [v.label for v in train.videos] == [0, 1, 1]
    assert not train.multi_label
    assert str(tmp_path / "train") in train.rule
    val = build_index(tmp_path, "val", labels=train.labels)
    assert [(Path(v.path).name, v.label) for v in val.videos] == [("d.webm", 0)]
    assert len(build_index(tmp_path, "all").videos) == 4
    assert split_names(tmp_path) == ["train", "val"]


def test_a_file_name_that_is_not_utf8_is_skipped_with_a_reason(tmp_path):
    names = [f"{c}/{i}.mp4" for c in "ab" for i in range(3)]
    touch(tmp_path, *names)
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"x")
    index = build_index(tmp_path, "all")
    assert len(index.videos) == 7
    assert len(build_index(tmp_path, "train").videos) + len(build_index(tmp_path, "val").videos) == 7
    bad = next(i for i, v in enumerate(index.videos) if "caf" in v.path)
    failure = VideoDataset(index, Preprocessing((16, 16)))[0, bad]
    assert isinstance(failure, Failure)
    assert failure.path == str(tmp_path / "a" / "caf\\xe9.mp4")
    assert failure.reason == f"{failure.path}: its name is not UTF-8; rename it"
    (tmp_path / os.fsdecode(b"\xe9")).mkdir()
    fails(tmp_path, match="class folder .*xe9 has a name that is not UTF-8; rename it")


def test_folder_with_val_only(tmp_path):
    touch(tmp_path, "val/a/1.mp4", "val/b/2.mp4")
    assert [v.label for v in build_index(tmp_path, "val", labels=["b", "a"]).videos] == [1, 0]
    fails(tmp_path, "train", match="no split 'train'; it has val")


def test_custom_split_names_and_classes_named_like_splits(tmp_path):
    touch(tmp_path / "folds", "fold1/a/1.mp4", "fold1/b/2.mp4", "fold2/a/3.mp4")
    assert len(build_index(tmp_path / "folds", "fold1").videos) == 2
    # train (the vehicle) and bus are classes: their folders hold videos directly
    touch(tmp_path / "vehicles", *(f"{c}/{i}.mp4" for c in ("train", "bus") for i in range(5)))
    index = build_index(tmp_path / "vehicles", "train")
    assert index.labels == ["bus", "train"]
    assert len(index.videos) == 8


def test_folders_of_images_are_videos(tmp_path):
    touch(tmp_path, "train/a/clip1/0.jpg", "train/a/clip1/1.jpg", "train/b/clip2/0.PNG", "train/b/x.mp4")
    videos = build_index(tmp_path, "train").videos
    assert [(Path(v.path).name, v.label) for v in videos] == [("clip1", 0), ("clip2", 1), ("x.mp4", 1)]
    touch(tmp_path / "flat", *(f"{c}/{i}/0.jpg" for c in "ab" for i in range(4)))
    assert len(build_index(tmp_path / "flat", "all").videos) == 8


def test_seeded_split_of_class_folders_is_stated_and_moves_with_the_folder(tmp_path):
    for place in ("here", "there"):
        touch(tmp_path / place, *(f"{c}/{i}.mp4" for c in "abc" for i in range(10)))
    parts = {s: build_index(tmp_path / "here", s) for s in ("train", "val")}
    names = {s: [v.path for v in index.videos] for s, index in parts.items()}
    assert Counter(v.label for v in parts["val"].videos) == {0: 2, 1: 2, 2: 2}
    assert not set(names["train"]) & set(names["val"])
    assert len(names["train"]) + len(names["val"]) == 30
    assert "seed 0" in parts["val"].rule
    assert "6 of the 30 videos" in parts["val"].rule
    moved = build_index(tmp_path / "there", "val").videos
    assert [v.path.replace("there", "here") for v in moved] == names["val"]
    assert [v.path for v in build_index(tmp_path / "here", "val", seed=1).videos] != names["val"]
    assert len(build_index(tmp_path / "here", "val", val_fraction=0.5).videos) == 15
    assert split_names(tmp_path / "here") == []
    fails(tmp_path / "here", "test", match="no split 'test'.*train and val")


def test_class_names_agree_between_splits_and_numbers_sort_as_numbers(tmp_path):
    touch(tmp_path, *(f"train/{i}/x.mp4" for i in (10, 9, 2)), "val/2/y.mp4", "val/33/z.mp4")
    assert build_index(tmp_path, "train").labels == ["2", "9", "10", "33"]
    assert build_index(tmp_path, "val").labels == ["2", "9", "10", "33"]


def test_unlabelled_videos_at_any_depth(tmp_path):
    touch(tmp_path, "a.mp4", "x/y/b.mp4", "x/frames/0.jpg")
    index = build_index(tmp_path, "all", labelled=False, labels=["p", "q"])
    assert [v.label for v in index.videos] == [None] * 3
    assert {Path(v.path).name for v in index.videos} == {"a.mp4", "b.mp4", "frames"}
    listed = write(tmp_path / "l.txt", "a.mp4", "x/y/b.mp4")
    assert len(build_index(listed, "all", labelled=False).videos) == 2


def test_unlabelled_videos_have_splits_too(tmp_path):
    """Folders called like splits, a list's column, or a seeded division that says so."""
    flat = tmp_path / "flat"
    touch(flat, *(f"{i}.mp4" for i in range(10)))
    parts = [build_index(flat, split, labelled=False, val_fraction=0.3) for split in ("train", "val")]
    assert [len(part.videos) for part in parts] == [7, 3]
    assert not {v.path for v in parts[0].videos} & {v.path for v in parts[1].videos}
    assert "(made here: seed 0, 0.3 for val)" in parts[1].rule
    divided = tmp_path / "divided"
    touch(divided, "train/a.mp4", "train/x/y/b.mp4", "val/c.mp4", "notes/d.mp4")
    assert [Path(v.path).name for v in build_index(divided, "train", labelled=False).videos] == ["a.mp4", "b.mp4"]
    assert len(build_index(divided, "val", labelled=False).videos) == 1
    assert split_names(divided, labelled=False) == ["train", "val"]
    with pytest.raises(DataError, match="has no split 'test'"):
        build_index(divided, "test", labelled=False)
    listed = write(tmp_path / "l.csv", "path,split", "flat/0.mp4,train", "flat/1.mp4,val")
    assert [Path(v.path).name for v in build_index(listed, "val", labelled=False).videos] == ["1.mp4"]


# Lists


def test_multi_label(tmp_path):
    path = write(tmp_path / "l.csv", "path,label", "a.mp4,x;y", "b.mp4,y", "c.mp4,", "d.mp4,z; x")
    index = build_index(path, "all")
    assert index.multi_label
    assert [v.label for v in index.videos] == [(0, 1), (1,), (), (0, 2)]
    single = write(tmp_path / "s.csv", "a.mp4,x", "b.mp4,y")
    assert build_index(single, "all", labels=["y", "x"], multi_label=True).videos[0].label == (1,)
    fails(path, "all", labels=["x", "y", "z"], multi_label=False, match="several labels")


def test_seeded_split_of_a_list_keeps_groups_and_parts_of_a_file_together(tmp_path):
    lines = [f"v{i}.mp4,{'xy'[i % 2]},g{i // 4}" for i in range(40)]
    path = write(tmp_path / "g.csv", "path,label,group", *lines)
    touch(tmp_path, "v0.mp4")
    groups = {s: {v.group for v in build_index(path, s).videos} for s in ("train", "val")}
    assert not groups["train"] & groups["val"]
    assert len(build_index(path, "val").videos) == 8
    assert "grouped" in build_index(path, "val").rule
    lines = [f"v{i}.mp4,{'xy'[k]},{k},{k + 1}" for i in range(20) for k in range(2)]
    path = write(tmp_path / "s.csv", "path,label,start,end", *lines)
    files = {s: {v.path for v in build_index(path, s).videos} for s in ("train", "val")}
    assert len(files["val"]) == 4
    assert not files["train"] & files["val"]


def test_seeded_split_properties():
    labels = [["rare"] if i < 2 else ["single"] if i == 2 else [f"c{i % 3}"] for i in range(100)]
    keys = [str(i) for i in range(100)]
    val = seeded_split(keys, labels, val_fraction=0.2, seed=3)
    kept = Counter(name for (name,), v in zip(labels, val) if v)
    assert kept["rare"] == 1  # one to learn from, one to measure on
    assert kept["single"] == 0  # only to learn from
    assert all(abs(kept[f"c{k}"] - 0.2 * 97 / 3) <= 1 for k in range(3))
    # the order of the rows changes nothing
    back = seeded_split(keys[::-1], labels[::-1], val_fraction=0.2, seed=3)
    assert back[::-1] == val
    assert seeded_split(["g"] * 4, [["a"], ["b"]] * 2, val_fraction=0.5, seed=0) == [False] * 4
    # two groups that are both far more than the fraction: one is kept back all the same
    assert sum(seeded_split(["g", "h"] * 10, [["a"], ["a"]] * 10, val_fraction=0.1, seed=0)) == 10


# Mistakes


def test_missing_and_empty(tmp_path):
    fails(tmp_path / "nowhere", match="nowhere is not there")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", match="empty holds no videos")
    touch(tmp_path / "bare", "train/a/readme.txt", "val/b/readme.txt")
    fails(tmp_path / "bare", match="holds no videos")
    touch(tmp_path / "loose", "a.mp4", "b.mp4")
    fails(tmp_path / "loose", match="2 videos but no class folders")
    touch(tmp_path / "deep", "set1/train/a/1.mp4", "set2/train/b/2.mp4")
    fails(tmp_path / "deep", match="set1 should hold the videos of one class")
    fails(write(tmp_path / "e.csv"), match="is empty")
    fails(write(tmp_path / "h.csv", "path,label"), match="header but no rows")
    (tmp_path / "v.mp4").write_bytes(b"\0\0\0\x18ftypmp42\xff\xfe")
    fails(tmp_path / "v.mp4", match="not a text file")


def test_one_class_only(tmp_path):
    touch(tmp_path, "one/train/a/1.mp4", "one/val/a/2.mp4", "half/train/a/1.mp4", "half/val/b/2.mp4")
    fails(tmp_path / "one", match="one class only .a.")
    fails(tmp_path / "half", match="split 'train' of .* one class only .a.")
    fails(write(tmp_path / "l.csv", "a.mp4,x", "b.mp4,x"), "all", match="one class only .x.")
    # measuring on one class is fine if the classes are known
    assert len(build_index(tmp_path / "one", "val", labels=["a", "b"]).videos) == 1


def test_unknown_label(tmp_path):
    touch(tmp_path, "val/kik/1.mp4", "val/punch/2.mp4")
    text = fails(tmp_path, "val", labels=["hug", "kick", "punch"], match="'kik', which is not known .nearest: kick.")
    assert "1.mp4" in text
    path = write(tmp_path / "l.csv", "path,label", "a.mp4,kick", "b.mp4,zzz")
    fails(path, "all", labels=["hug", "kick"], match="l.csv line 3 has the label 'zzz'.*known: hug, kick")
    # only the split that is asked for has to be known
    path = write(tmp_path / "s.csv", "path,label,split", "a.mp4,kick,val", "b.mp4,zzz,train")
    assert len(build_index(path, "val", labels=["hug", "kick"]).videos) == 1


def test_splits_of_lists(tmp_path):
    path = write(tmp_path / "l.csv", "path,label,split", "a.mp4,x,training", "b.mp4,y,training", "c.mp4,y,test")
    fails(path, "train", match="no split 'train'; it has test, training")
    assert split_names(path) == ["test", "training"]
    path = write(tmp_path / "m.csv", "path,label,split", "a.mp4,x,train", "b.mp4,y,train", "c.mp4,y,trian")
    assert build_index(path, "train").rule.endswith("2 videos; other splits: trian")
    path = write(tmp_path / "g.csv", "path,label,group", "a.mp4,x,g", "b.mp4,y,g")
    fails(path, "train", match="cannot be divided .* one group")
    fails(path, "train", val_fraction=1.5, match="between 0 and 1")
    fails(path, "all", labels=["x", "y", "x"], match="same name twice")


def test_labels_file(tmp_path):
    save_labels(tmp_path / "labels.json", ["b", "ä"])
    assert load_labels(tmp_path / "labels.json") == ["b", "ä"]
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="not a JSON list"):
        load_labels(tmp_path / "bad.json")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real videos are not beside the repository")
def test_real_folders_and_lists():
    sizes = {("ut6", "train"): 72, ("ut6", "val"): 24, ("order3", "train"): 108, ("order3", "val"): 36}
    for (name, split), n in sizes.items():
        index = build_index(SHARED / name, split)
        assert (len(index.videos), len(index.labels)) == (n, 6)
    odd = build_index(SHARED / "odd/odd.csv", "all")
    assert len(odd.videos) == 34
    assert all(Path(v.path).exists() for v in odd.videos)
    assert odd.labels == ["a", "b"]
    parts = [len(build_index(SHARED / "odd/odd.csv", s).videos) for s in ("train", "val")]
    assert sum(parts) == 34
    assert 6 <= parts[1] <= 8
    # all sets together, groups as recorded: no group on both sides
    assert len(build_index(SHARED / "manifest.csv", "val").videos) == 24 + 36 + 22


def test_a_list_whose_paths_count_from_a_root(tmp_path):
    videos, lists = tmp_path / "videos", tmp_path / "lists"
    for folder in (videos, lists):
        folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (videos / name).touch()
    rows = ("path,label,split", "a.mp4,x,train", "b.mp4,y,train")
    listing = write(lists / "l.csv", *rows, touch_files=False)
    index = build_index(listing, "train", root=videos)
    assert [Path(v.path).parent for v in index.videos] == [videos, videos]
    with pytest.raises(DataError):
        build_index(listing, "train")


def test_no_label_means_none_where_the_model_is_known_to_give_several(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    source = write(tmp_path / "list.csv", "path,label", "a.mp4,x", "b.mp4,")
    fails(source, "all", match="line 3 has no label")
    index = build_index(source, "all", labels=["x", "y"], multi_label=True)
    assert [v.label for v in index.videos] == [(0,), ()]


def test_a_class_folder_without_a_known_video_is_named(tmp_path):
    touch(tmp_path, "a/1.asf", "b/1.y4m", "running/1.txt", "empty/.hidden")
    with pytest.warns(NoVideoWarning, match=r"class 'running' has no video \(its files: .txt\)") as warned:
        assert build_index(tmp_path, "all").labels == ["a", "b"]
    assert len(warned) == 1


# Headers by other names, other spellings, line breaks in quotes


def test_classes_that_cannot_be_learned_are_named(tmp_path):
    touch(tmp_path, *(f"{s}/{c}/{i}.mp4" for s in ("train", "val") for c in ("jump", "run") for i in range(2)))
    known = build_index(tmp_path, "train"), build_index(tmp_path, "val")
    assert unlearnable_classes(*known) is None
    touch(tmp_path, "val/runn/1.mp4", "val/runn/2.mp4", "val/zz/1.mp4")
    train, val = build_index(tmp_path, "train"), build_index(tmp_path, "val")
    said = "2 classes have no video in train and cannot be learned: 'runn' (2 in val), nearest: 'run'; 'zz' (1 in val)"
    assert unlearnable_classes(train, val) == said
    lists = write(tmp_path / "l.csv", "path,label,split", "a.mp4,p,train", "b.mp4,q;p,train", "c.mp4,r,val")
    touch(tmp_path, "a.mp4")
    train = build_index(lists, "train")
    assert unlearnable_classes(train, None) == "a class has no video in train and cannot be learned: 'r'"


def test_a_link_that_leads_to_itself_is_one_video_that_cannot_be_read(tmp_path):
    root = touch(tmp_path / "set", "a/1.mp4", "b/1.mp4")
    (root / "a" / "loop.mp4").symlink_to("loop.mp4")
    (root / "loop").symlink_to("loop")
    for labelled in (True, False):
        videos = build_index(root, "all", labelled=labelled).videos
        assert [Path(video.path).name for video in videos] == ["1.mp4", "loop.mp4", "1.mp4"]
    with pytest.raises(VideoError, match="symbolic links"):
        open_video(root / "a" / "loop.mp4")


def test_names_that_look_equal_are_named_once():
    assert classes_that_look_equal(["cat", "cut", "Zürich", "1", "10"]) is None
    names = ["Cat", "caf\u00e9", "cafe\u0301", "ca\u00adt", "cat ", "dog", "do\u200dg"]
    assert classes_that_look_equal(names) == (
        r"classes whose names look equal are learned apart: 'Cat' and 'ca\xadt' and 'cat ', 'caf\xe9' and "
        r"'cafe\u0301', 'dog' and 'do\u200dg'; rename those that are the same"
    )


def test_an_unknown_label_that_looks_like_a_known_one_is_spelt_out(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.mp4,cafe\u0301\nb.mp4,bar\n")
    (tmp_path / "a.mp4").write_text("")
    with pytest.raises(DataError, match=r"label 'cafe\\u0301', which is not known; 'caf\\xe9' looks the same"):
        build_index(tmp_path / "list.csv", "all", labels=["bar", "caf\u00e9"])
