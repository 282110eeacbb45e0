"""List files: separators, headers, columns, spellings of a path, and one sentence for every mistake."""

import os
from pathlib import Path

import pytest

from tests.video.test_index import fails, touch, write
from tttvideo.video.index import build_index


@pytest.mark.parametrize(
    "lines",
    [
        ["path,label", "a.mp4,run", "sub/b b.mp4,jump"],
        ["a.mp4,run", "sub/b b.mp4,jump"],
        ["a.mp4\trun", "sub/b b.mp4\tjump"],
        ["LABEL, other , Video", "run,1,a.mp4", "jump,,sub/b b.mp4"],
        ["a.mp4 run", '"sub/b b.mp4"  jump'],
        ["path,label\r", "", "a.mp4,run\r", "sub/b b.mp4,jump\r"],
        ["\ufeffpath,label,note", 'a.mp4,run,"x, y"', "sub/b b.mp4,jump"],
    ],
)
def test_list_forms(tmp_path, lines):
    touch(tmp_path, "a.mp4", "sub/b b.mp4")
    index = build_index(write(tmp_path / "list.csv", *lines), "all")
    assert [(Path(v.path), v.label) for v in index.videos] == [
        (tmp_path / "a.mp4", 1),
        (tmp_path / "sub/b b.mp4", 0),
    ]


def test_list_columns_by_position(tmp_path):
    spans = write(tmp_path / "1.csv", "a.mp4,x,0,1.5", "a.mp4,y,1.5,", "b.mp4,y,,")
    videos = build_index(spans, "all").videos
    assert [(v.start, v.end) for v in videos] == [(0, 1.5), (1.5, None), (None, None)]
    everything = write(tmp_path / "2.csv", "a.mp4,x,0,1,g1,train", "a.mp4,y,1,2,g1,train", "b.mp4,y,0,1,g2,val")
    index = build_index(everything, "train")
    assert [(v.group, v.start) for v in index.videos] == [("g1", 0), ("g1", 1)]
    assert "split train" in index.rule
    group = write(tmp_path / "3.csv", "a.mp4,x,g1", "b.mp4,y,g2")
    assert [v.group for v in build_index(group, "all").videos] == ["g1", "g2"]
    split = write(tmp_path / "4.csv", "a.mp4,x,train", "b.mp4,y,val")
    assert len(build_index(split, "val", labels=["x", "y"]).videos) == 1
    both = write(tmp_path / "5.csv", "a.mp4,x,g1,train", "b.mp4,y,g2,val")
    assert build_index(both, "val", labels=["x", "y"]).videos[0].group == "g2"
    fails(write(tmp_path / "6.csv", "a.mp4,12,3", "b.mp4,14,5"), match="more than one way")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["path,split", "a.mp4,train"], "no label column .found: path, split."),
        (["a.mp4", "b.mp4"], "no label column .found: one column."),
        (["name,label", "a.mp4,x"], "no path column"),
        (["path,label,class", "a.mp4,x,y"], "two label columns"),
        (["path,label", "a.mp4,x", "b.mp4,"], "line 3 has no label for b.mp4"),
        (["path,label", ",x"], "line 2 has no path"),
        (["path,label", "a.mp4,x", "a.mp4,y"], "line 3 labels a.mp4 'y' but line 2 labels it 'x'"),
        (["path,label", "a.mp4,x", "b.mp4,y", "a.mp4,x"], "line 4 lists a.mp4 again .first on line 2."),
        (["path,label,start,end", "a.mp4,x,2,1"], "line 2 ends .1 s. before it starts .2 s."),
        (["path,label,start", "a.mp4,x,0:30"], "start '0:30', which is not a time in seconds"),
        (["path,label,start", "a.mp4,x,1_0"], "start '1_0', which is not a time in seconds"),
        (["path,label,end", "a.mp4,x,１０"], "end '１０', which is not a time in seconds"),
        (["path,label,split", "a.mp4,x,train", "b.mp4,y,"], "line 3 has an empty split"),
        (["path,label", "a.mp4,x,y"], "line 2 has 3 columns instead of 2"),
        (["a b.mp4 x", "c.mp4 y"], "lines of 2 to 3 columns"),
        (["path,label", "q.mp4,x", "r.mp4,y"], "names no file that is there"),
    ],
)
def test_broken_lists(tmp_path, lines, match):
    fails(write(tmp_path / "l.csv", *lines), "all", match=match)


def test_line_ends_of_old_programs_and_a_cell_beyond_reading(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_bytes(b"path,label\ra.mp4,x\rb.mp4,y\r")
    assert [Path(v.path).name for v in build_index(tmp_path / "list.csv", "all").videos] == ["a.mp4", "b.mp4"]
    (tmp_path / "long.csv").write_text("a.mp4,x\n" + "b" * 200_000 + ",y\n")
    fails(tmp_path / "long.csv", match=r"long.csv line 2 cannot be read \(field larger")


@pytest.mark.parametrize(
    ("lines", "paths"),
    [
        (("video_name,tag", "a.mp4,x", "b.mp4,y"), ["a.mp4", "b.mp4"]),  # Keras
        (("tag,video_name", "x,a.mp4", "y,b.mp4"), ["a.mp4", "b.mp4"]),
        (("# path label", "a.mp4 x", "b.mp4 y"), ["a.mp4", "b.mp4"]),
        (("name,path,label", "one,a.mp4,x", "two,b.mp4,y"), ["a.mp4", "b.mp4"]),  # the better name counts
        ((",filepath,action", "0,a.mp4,x", "1,b.mp4,y"), ["a.mp4", "b.mp4"]),  # pandas
        (("a.mp4,video", "b.mp4,action"), ["a.mp4", "b.mp4"]),  # classes that are called like columns
        (("missing.mp4,x", "b.mp4,y"), ["missing.mp4", "b.mp4"]),
        (("video,label", "a.mp4,x", "b.mp4,y"), ["a.mp4", "b.mp4"]),
    ],
)
def test_headers_by_other_names(tmp_path, lines, paths):
    (tmp_path / "video").mkdir()
    touch(tmp_path, "a.mp4", "b.mp4")
    index = build_index(write(tmp_path / "l.csv", *lines), "all")
    assert [Path(v.path).name for v in index.videos] == paths
    assert len(index.labels) == 2


def test_a_header_of_unknown_names_is_refused(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4")
    listed = write(tmp_path / "l.csv", "vid,kind", "a.mp4,x", "b.mp4,y")
    fails(
        listed,
        match=r"the first line of .*l\.csv names no video \('vid'\) but another does \('a\.mp4'\); if it is a header",
    )
    fails(write(tmp_path / "m.csv", "clip,video_file,label", "a.mp4,b.mp4,x"), match="two path columns")


def test_other_spellings_of_a_path_are_the_same_file(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c/d.mp4")
    for other in ("./a.mp4", "c/../a.mp4", ".//a.mp4", str(tmp_path / "a.mp4")):
        listed = write(tmp_path / "l.csv", "a.mp4,x", "b.mp4,y", f"{other},y")
        fails(listed, match=r"line 3 labels a\.mp4 'y' but line 1 labels it 'x'")
    rows = [f"{'./' * (i % 2)}{i // 2}.mp4,{'xy'[i // 2 % 2]},{i % 2},{i % 2 + 1}" for i in range(40)]
    listed = write(tmp_path / "parts.csv", "path,label,start,end", *rows)
    touch(tmp_path, *(f"{i}.mp4" for i in range(20)))
    train, val = ({os.path.normpath(v.path) for v in build_index(listed, s).videos} for s in ("train", "val"))
    assert len(train) + len(val) == 20
    assert not train & val


def test_line_breaks_in_quotes(tmp_path):
    touch(tmp_path, "a\nb.mp4", "c.mp4")
    listed = write(tmp_path / "l.csv", "path,label,split", '"a\nb.mp4","x",train', "", "c.mp4,y,train")
    assert [Path(v.path).name for v in build_index(listed, "train").videos] == ["a\nb.mp4", "c.mp4"]
    listed = write(tmp_path / "m.csv", "path,label,split", '"a\nb.mp4",x,train', "c.mp4,y,")
    fails(listed, match=r"m\.csv line 4 has an empty split for c\.mp4")
    listed = write(tmp_path / "n.csv", "a.mp4,x", '"c.mp4,y', "d.mp4,x", "e.mp4,y")
    fails(listed, match=r"n\.csv line 2 cannot be read \(a quote that is not closed\)")
