"""Files of rows: what comes out is what was written, or nothing."""

import pytest
import torch

from tests.test_full_disk import room_for
from tttvideo.video.listfile import DataError
from tttvideo.video.rows import BLOCK, DamagedRows, Rows, writing

ABOUT = {"video": [3, 7], "note": "é"}


def write(path, count, kind=torch.float16):
    rows = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(count)).to(kind)
    numbers, times = torch.arange(count) * 2, torch.arange(2 * count) / 25
    with writing(path) as writer:
        for part in rows.split(50):  # neither a block nor a divisor of one
            writer.add(part)
        if not count:
            writer.add(rows)
        writer.finish(numbers, times, ABOUT)
    return rows, numbers, times


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("count", [0, 1, BLOCK, 3 * BLOCK + 17])
def test_any_rows_come_back_and_nothing_else_is_left(tmp_path, count, kind):
    path = tmp_path / "a" / "video.safetensors"
    rows, numbers, times = write(path, count, kind)
    kept = Rows(path)
    assert kept.about == ABOUT
    assert len(kept) == count
    assert kept.shape == (2, 3)
    assert torch.equal(kept.numbers, numbers)
    assert torch.equal(kept.times, times.double())
    for places in (torch.arange(count), torch.arange(count)[BLOCK - 1 : BLOCK + 2], torch.arange(count)[::37]):
        assert torch.equal(kept.take(places), rows[places])
    assert [file.name for file in path.parent.iterdir()] == ["video.safetensors"]


def test_a_changed_byte_is_never_believed(tmp_path):
    path = tmp_path / "video.safetensors"
    rows, numbers, times = write(path, 2 * BLOCK + 9)
    whole = path.read_bytes()
    damages = 0
    generator = torch.Generator().manual_seed(0)
    header = list(range(0, 700, 3))
    for at in [*header, *torch.randint(len(whole), (400,), generator=generator).tolist()]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            kept = Rows(path)
            found = kept.take(torch.arange(len(kept)))
        except DamagedRows:
            damages += 1
            continue
        same = (
            torch.equal(found, rows) and torch.equal(kept.numbers, numbers) and torch.equal(kept.times, times.double())
        )
        assert same, at  # blanks behind the header mean nothing
        assert kept.about == ABOUT
    assert damages > 200
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedRows):
            Rows(path)


def test_one_writes_at_a_time_and_an_interruption_leaves_nothing(tmp_path):
    path = tmp_path / "video.safetensors"
    with writing(path) as first:
        first.add(torch.zeros(200, 1, 4))
        with writing(path) as second:
            assert second is None
        with pytest.raises(KeyboardInterrupt):
            _interrupted(tmp_path / "other")
        first.finish(torch.arange(200), torch.arange(200.0), {})
    assert [file.name for file in tmp_path.iterdir()] == ["video.safetensors"]


def _interrupted(path):
    with writing(path) as writer:
        writer.add(torch.zeros(200, 1, 4))
        raise KeyboardInterrupt


def test_a_full_disk_is_a_sentence(tmp_path):
    with room_for(20_000), pytest.raises(DataError, match="cannot be written"):
        write(tmp_path / "a" / "b", 40_000)
    assert list((tmp_path / "a").iterdir()) == []
