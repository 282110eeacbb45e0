"""Models by their name on the Hub, without a network: a stub in place of huggingface_hub's calls."""

import shutil

import huggingface_hub
import pytest
import torch

import tttvideo
from tests.evaluation.small import small_model, small_run
from tttvideo import hub
from tttvideo.cli import main
from tttvideo.serialize import resolve_checkpoint


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder in place of the Hub: org/name in it is a repository."""
    root = tmp_path / "hub"

    def snapshot_download(name, *, allow_patterns, library_name):
        if not (root / name).is_dir():
            raise OSError(f"404 for {name}\nsecond line")
        copy = tmp_path / "cache" / name
        copy.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for file in (root / name).glob(pattern):
                shutil.copy(file, copy)
        return str(copy)

    class Api:
        def __init__(self, library_name):
            assert library_name == "tttvideo"

        def create_repo(self, name, *, private, exist_ok):
            assert private
            assert exist_ok
            (root / name).mkdir(parents=True, exist_ok=True)
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            if repo_id.startswith("theirs/"):
                raise PermissionError("403")
            for pattern in allow_patterns:
                shutil.copy(f"{folder_path}/{pattern}", root / repo_id)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return root


def test_what_is_pushed_is_fetched_by_name(server, tmp_path, capsys):
    run = small_run(tmp_path / "run", small_model())
    (tmp_path / "out").mkdir()
    words = ["export", str(run), "--out", str(tmp_path / "out"), "--push", "org/name", "--license", "apache-2.0"]
    assert main(words) == 0
    assert 'https://hub/org/name: tttvideo.from_pretrained("org/name")' in capsys.readouterr().out
    (server / "org" / "name" / "more.py").write_text("raise SystemExit")
    card = (server / "org" / "name" / "README.md").read_text()
    for line in ("library_name: tttvideo", "pipeline_tag: video-classification", "license: apache-2.0"):
        assert line in card
    mine, theirs = tttvideo.from_pretrained(run).state_dict(), tttvideo.from_pretrained("org/name").state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert sorted(p.name for p in resolve_checkpoint("org/name").iterdir()) == sorted(hub.FILES)
    assert (resolve_checkpoint("org/name", code=True) / "more.py").is_file()  # of those who trust it
    assert main([*words[:5], "theirs/name", *words[6:]]) == 2
    assert "is written, but the Hub did not take it as theirs/name (PermissionError: 403)" in capsys.readouterr().err


def test_a_name_that_is_not_there_is_one_sentence(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^org/none is no folder here, and the Hub .*404 for org/none second"):
        tttvideo.from_pretrained("org/none")
    # a misspelt path of this machine is not asked for elsewhere
    (tmp_path / "runs").mkdir()
    for path in ("runs/mien", "./a/b", "a/b/c", "alone", tmp_path / "runs" / "x"):
        with pytest.raises(ValueError, match="does not exist"):
            resolve_checkpoint(path)


def test_public_names_are_listed():
    assert dir(tttvideo) == sorted(tttvideo.__all__)
