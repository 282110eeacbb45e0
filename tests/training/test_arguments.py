"""Settings of exchangeable parts: short names, import paths, and what they keep when a part is exchanged."""

import sys

import pytest

from tttvideo.mixers import Attention
from tttvideo.training.arguments import parse
from tttvideo.training.config import ConfigError
from tttvideo.ttt import MLP, TTT, Conv, Linear

YAML = """
model:
  backbone:
    mixer:
      class_path: TTT
      init_args:
        heads: 2
        inner: {inner}
"""


def mixer(tmp_path, inner, *words):
    file = tmp_path / "config.yaml"
    file.write_text(YAML.format(inner=inner))
    return parse(["--config", str(file), *words])[0].model.backbone.mixer


@pytest.mark.parametrize(("name", "inner"), [("MLP", MLP()), ("Linear", Linear()), ("Conv", Conv())])
def test_one_line_swaps_the_inner_model(tmp_path, name, inner):
    assert mixer(tmp_path, name) == TTT(inner=inner, heads=2)
    assert mixer(tmp_path, "MLP", "--model.backbone.mixer.inner", name) == TTT(inner=inner, heads=2)


def test_another_class_starts_from_its_own_defaults(tmp_path):
    """Conv and MLP both have an expansion, with different defaults."""
    assert Conv().expansion != MLP().expansion
    words = ("--model.backbone.mixer.inner.expansion", "3")
    assert mixer(tmp_path, "MLP", *words).inner == MLP(expansion=3)
    assert mixer(tmp_path, "Conv", *words).inner == Conv(expansion=3)
    assert mixer(tmp_path, "MLP", "--model.backbone.mixer", "Attention") == Attention()


def test_an_inner_model_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "mypkg.py").write_text(
        "from dataclasses import dataclass\n"
        "from tttvideo.ttt.inner import InnerModel, MapShape\n"
        "@dataclass(frozen=True)\n"
        "class MyInner(InnerModel):\n"
        "    rank: int = 2\n"
        "    def maps(self, dim):\n"
        "        return {'down': MapShape(dim, self.rank), 'up': MapShape(self.rank, dim)}\n"
        "    def __call__(self, x, affine, grid):\n"
        "        return affine('up', affine('down', x))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    found = mixer(tmp_path, "mypkg.MyInner", "--model.backbone.mixer.inner.rank", "5")
    assert type(found.inner).__name__ == "MyInner"
    assert found.inner.rank == 5
    assert found.build(8).weights["down_weight"].shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("text", "words", "root", "list_"),
    [
        ("root: videos", ["--data.list", "a.csv"], None, "a.csv"),
        ("root: videos", ["--data.list=a.csv"], None, "a.csv"),
        ("root: videos", ["--data.list", "a.csv", "--data.root", "clips"], "clips", "a.csv"),
        ("list: b.csv", ["--data.root", "clips"], "clips", None),
        ("{list: b.csv, root: videos}", ["--data.root", "clips"], "clips", "b.csv"),
        ("root: videos", ["--data.list", "null"], "videos", None),
        ("root: videos", [], "videos", None),
    ],
)
def test_data_named_on_the_command_line_replace_those_of_the_file(tmp_path, text, words, root, list_):
    file = tmp_path / "config.yaml"
    file.write_text(f"data:\n  {text}\n")
    data = parse(["--config", str(file), *words])[0].data
    assert (data.root, data.list) == (root, list_)


def test_a_class_that_does_not_exist_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"mixer.*MPL"):
        mixer(tmp_path, "MPL")
