"""`tttvideo export --carry`: the file of a user's own class goes with the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.small import small_run
from tests.helpers import video_model
from tttvideo.cli import main
from tttvideo.encoder import Tubelets

ROOT = Path(__file__).resolve().parents[2]
ENCODER = """
from dataclasses import dataclass
from tttvideo.encoder import Encoder, Patches
from sizes_of_mine import PATCH

@dataclass(frozen=True)
class Mine(Encoder):
    def build(self, size, dim, *, load=True):
        return Patches(PATCH).build(size, dim)
"""


LOADING = """
def refusal(**how):
    try:
        tttvideo.from_pretrained("model", **how)
    except ValueError as error:
        return " ".join(str(error).split())

print(refusal())
print(float(sum(p.sum() for p in tttvideo.from_pretrained("model", trust=True).parameters())))
del sys.modules["carried_encoder"], sys.modules["sizes_of_mine"]
sys.path.insert(0, ".")
import sizes_of_mine
print(refusal(trust=True))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose encoder is of carried_encoder.py, which imports another file."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "carried_encoder.py").write_text(ENCODER)
    (here / "sizes_of_mine.py").write_text("PATCH = 8\n")
    (here / "other").mkdir()
    (here / "other" / "carried_encoder.py").write_text(ENCODER + "# another")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    for module in ("carried_encoder", "sizes_of_mine"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    import carried_encoder  # type: ignore

    return small_run(tmp_path / "run", video_model(encoder=carried_encoder.Mine()))


def export(run, *words):
    return main(["export", str(run), "--out", str(run.parent / "out"), "--trust", *words])


def elsewhere(code, folder):
    """In a process that sees nothing of this one's files."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tttvideo\n"
    return subprocess.run([sys.executable, "-P", "-c", start + code], cwd=folder, capture_output=True, text=True)


def test_a_model_is_loaded_where_its_class_is_not(run, tmp_path, capsys):
    assert export(run, "--carry", "carried_encoder.py", "--carry", "sizes_of_mine.py") == 0
    out = tmp_path / "out"
    assert f'tttvideo.from_pretrained("{out}", trust=True)' in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert "runs their code, which lies beside this card in `carried_encoder.py`, `sizes_of_mine.py`" in card
    (tmp_path / "there").mkdir()
    out.rename(tmp_path / "there" / "model")
    (tmp_path / "there" / "sizes_of_mine.py").write_text("PATCH = 4\n")
    done = elsewhere(LOADING, tmp_path / "there")
    assert done.returncode == 0, done.stderr
    without, total, foreign = done.stdout.splitlines()
    assert "which is not part of tttvideo and whose import would run its code" in without
    assert "sizes_of_mine.py is not the module sizes_of_mine that is imported here" in foreign
    expected = sum(p.sum() for p in video_model(encoder=sys.modules["carried_encoder"].Mine()).parameters())
    assert float(total) == pytest.approx(float(expected.detach()), rel=1e-6)
    # an export of the export carries the same
    again = [str(tmp_path / "there" / "model"), "--out", str(tmp_path / "again"), "--trust"]
    assert main(["export", *again]) == 0
    assert json.loads((tmp_path / "again" / "config.json").read_text())["carried"] == [
        "carried_encoder.py", "sizes_of_mine.py",
    ]  # fmt: skip
    assert (tmp_path / "again" / "carried_encoder.py").read_text() == ENCODER


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--carry", "carried_encoder.py"], "cannot be loaded elsewhere with what it carries"),
        (["--carry", "sizes_of_mine.py"], "lacks the module carried_encoder, which the model has a class of"),
        (["--carry", "nothing.py"], "takes Python files, and nothing.py is none"),
        (["--carry", "other/carried_encoder.py"], "but carried_encoder was imported from"),
        (["--carry", "carried_encoder.py", "--carry", "other/carried_encoder.py"], "two have the same"),
    ],
)
def test_what_cannot_be_carried(run, words, sentence, capsys):
    assert export(run, *words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (run.parent / "out").exists()


def test_a_card_says_how_long_an_answer_waits(tmp_path):
    run = small_run(tmp_path / "run", video_model(encoder=Tubelets(patch=8, frames=4)))
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    card = " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert "a stream is answered once in so many, and the first frame of each waits for 3 more." in card
    assert "time steps of 4" in card


def test_it_needs_trust(tmp_path, capsys):
    assert main(["export", "run", "--out", str(tmp_path / "out"), "--carry", "a.py"]) == 2
    assert "--carry puts the files of your own classes into a folder, which needs --trust" in capsys.readouterr().err
