"""Files appear whole or not at all; damage is one sentence."""

import pytest

from tttvideo.files import damaged, read_json, replacing, write_text


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, shared):
    path = tmp_path / "x.png"
    with replacing(path, shared=shared) as unfinished:
        unfinished.write_text("old")
        assert unfinished.suffix == ".png"
        assert not path.exists()

    def fail():
        with replacing(path, shared=shared) as unfinished:
            unfinished.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]
    assert path.read_text() == "old"


def test_an_error_names_the_file_that_was_meant(tmp_path):
    with pytest.raises(OSError, match="No such file") as raised:
        write_text(tmp_path / "none" / "x.txt", "")
    assert raised.value.filename == str(tmp_path / "none" / "x.txt")


def test_names_that_are_no_unicode_can_be_written(tmp_path):
    write_text(tmp_path / "x", "a\udce9\n", durable=True)
    assert (tmp_path / "x").read_bytes() == b"a\\udce9\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "it is not JSON"), ("[1]", "got a list"), ("[" * 100_000, "too deeply"), ("\xff", "it is not JSON")],
)
def test_damaged_json_is_one_sentence(tmp_path, content, reason):
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"x\.json is damaged \(.*{reason}[^\n]*\); make it again$"):
        read_json(path, "make it again")
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_a_missing_key_is_named(tmp_path):
    assert str(damaged(tmp_path / "x", KeyError("rows"))).endswith("is damaged (it has no 'rows')")
