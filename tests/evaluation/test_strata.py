"""Strata: every video in one, equal values together."""

import pytest

from tttvideo.evaluation.strata import Column, choose_columns, read_columns, strata
from tttvideo.video.index import Index, Video


def names(values, bins=4):
    return [(s.name, len(s.videos)) for s in strata(Column("c", [str(v) for v in values], bins))]


def test_few_numbers_have_a_stratum_each():
    assert names([16, 1, 4, 1, 16, 4]) == [("1", 2), ("4", 2), ("16", 2)]


def test_many_numbers_are_binned_evenly_and_completely():
    assert names(range(40)) == [("0-9", 10), ("10-19", 10), ("20-29", 10), ("30-39", 10)]
    found = strata(Column("c", [str(v) for v in range(40)], 4))
    assert [s.centre for s in found] == [4.5, 14.5, 24.5, 34.5]
    skewed = names([0] * 50 + list(range(1, 21)), bins=4)
    assert skewed[0] == ("0", 50)
    assert sum(n for _, n in skewed) == 70


def test_words_and_missing_values():
    assert names(["red", "", "blue", "red"]) == [("blue", 1), ("red", 2)]
    with pytest.raises(ValueError, match="30 different words are no strata"):
        names([f"w{i}" for i in range(30)])
    with pytest.raises(ValueError, match=r"41 different words are no strata \('n/a' is no finite number\)"):
        names([*range(40), "n/a"])
    assert names(["nan", "1", "1"]) == [("1", 2), ("nan", 1)]  # no number: it is in no order with the others


def test_columns_of_a_list_are_matched_by_file_and_span(tmp_path):
    (tmp_path / "list.csv").write_text("path,label,start,end,room\na.mp4,x,0,1,hall\na.mp4,y,1,2,shed\n")
    videos = [Video(str(tmp_path / "a.mp4"), 0, None, s, e) for s, e in ((1.0, 2.0), (0.0, 1.0), (5.0, 6.0))]
    index = Index(videos, ["x", "y"], False, "all", "")
    rows = read_columns(tmp_path / "list.csv", None, index)
    assert [row.get("room") for row in rows] == ["shed", "hall", None]
    (column,) = choose_columns(["room:3"], rows)
    assert (column.values, column.bins) == (["shed", "hall", ""], 3)
    with pytest.raises(ValueError, match="no column 'rom'; there are: start, end, room"):
        choose_columns(["rom"], rows)
    with pytest.raises(ValueError, match=r"predictions\.csv has a column 'start' of its own; rename"):
        choose_columns(["start"], rows, {"start"})
    with pytest.raises(ValueError, match="with such a column is needed"):
        choose_columns(["room"], read_columns(tmp_path, None, index))


def test_bins_are_counted_from_one():
    with pytest.raises(ValueError, match="--by depth:0: the number of bins must be 1 or more"):
        choose_columns(["depth:0"], [{"depth": "1"}])


def test_a_damaged_table_is_named(tmp_path):
    (tmp_path / "meta.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"meta\.csv is damaged"):
        read_columns(tmp_path, None, Index([], [], False, "all", ""))
