"""Every codec in every container that can be written here: no wrong frame in any request, no wrong time."""

import numpy as np
import pytest
import torch

from benchmarks.decoding_matrix import BEGIN, END, measure, put_into, table
from benchmarks.painted import BITS, KINDS, can_write, numbers, paint
from tttvideo.video import pyav_reader


def test_painted_numbers_are_read_and_what_is_mixed_is_none():
    values = [0, 1, 77, 40_000, 2**BITS - 1]
    frames = torch.from_numpy(np.stack([paint(n) for n in values])).permute(0, 3, 1, 2)
    assert numbers(frames) == values
    mixed = (frames[1].float() + frames[2].float()) / 2
    assert numbers(mixed[None].byte()) == [-1]
    assert numbers(torch.full((1, 3, 96, 128), 128, dtype=torch.uint8)) == [-1]


def one_of_each():
    """Every kind; `slow`, where its coding and its container each stand in an earlier one."""
    seen = set()
    for kind in KINDS:
        again = {kind.name, kind.container} <= seen
        seen |= {kind.name, kind.container}
        yield pytest.param(kind, marks=pytest.mark.slow if again else ())


@pytest.mark.parametrize("kind", list(one_of_each()), ids=lambda kind: f"{kind.name} .{kind.container}")
def test_every_request_of_every_kind(kind, tmp_path, monkeypatch):
    if not can_write(kind):
        pytest.skip(f"this PyAV has no encoder {kind.codec}")
    monkeypatch.setattr(pyav_reader, "SHORTEST_JUMP", 1, raising=False)  # seek wherever the packets allow it
    row = measure(kind, tmp_path, 130, rounds=1)
    assert row["wrong"] == dict.fromkeys(row["wrong"], 0)
    assert row["wrong_times"] == 0
    assert row["damage"] == []


def test_the_table_goes_between_its_markers(tmp_path):
    row = measure(KINDS[0], tmp_path, 20, rounds=1)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    put_into(page, table([row]))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "H.264, no B-frames (.mp4) | 0 | 0 | 0 | 0 | 0 | 0 |" in text
    assert "0 wrong of " in text
