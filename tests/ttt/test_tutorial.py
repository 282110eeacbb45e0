"""docs/inner-models.md and docs/layers.md do what they say: their code is used as a reader would use it."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.ttt.test_dual import case, definition
from tttvideo.model import VideoModel
from tttvideo.pretrained import from_pretrained
from tttvideo.training.arguments import parse
from tttvideo.ttt import TTT, TokenCausal
from tttvideo.ttt.objective import ResidualL2
from tttvideo.ttt.scan import scan
from tttvideo.video.transforms import Preprocessing

DOCS = Path(__file__).parents[2] / "docs"


def block(language: str, page: str = "inner-models.md") -> str:
    found = re.search(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    yield importlib.import_module("mine")
    sys.modules.pop("mine", None)


def test_it_is_twenty_lines():
    assert len(block("python").strip().splitlines()) <= 20


def test_the_dual_form_and_streaming_follow(mine):
    inner = mine.LowRank(rank=3)
    loop, state, tokens = case(inner, ResidualL2())
    size = tokens.v.shape[3]
    scale = torch.rand(size, 1).double()
    mask = TokenCausal(size).mask(1, size, torch.device("cpu"))
    expected, _ = definition(loop, state.weights, tokens, scale, mask)
    out, _ = scan(loop, state, tokens, size=size, scale=scale, mask=mask)
    assert (out - expected).abs().max() <= 1e-10
    layer = TTT(inner=inner, heads=2, chunk=TokenCausal(4)).build(8).double()
    x = torch.randn(1, 11, 8).double()
    whole, _ = layer(x)
    first, state = layer(x[:, :5])
    second, _ = layer(x[:, 5:], state)
    assert (torch.cat((first, second), 1) - whole).abs().max() <= 1e-12


def test_training_takes_it_by_its_import_path(mine, tmp_path):
    words = block("bash").split()
    chosen = words[words.index("--model.backbone.mixer.inner") : words.index("--out")]
    config, _ = parse([*chosen, "--data.root", "x", "--out", "y"])
    assert type(config.model.backbone.mixer.inner).__name__ == "LowRank"
    (tmp_path / "c.yaml").write_text(block("yaml"))
    assert yaml.safe_load(block("yaml"))
    config, _ = parse(["--config", "c.yaml", "--data.root", "x", "--out", "y"])
    assert config.model.backbone.mixer.inner.rank == 4

    torch.manual_seed(0)
    model = VideoModel(config.model, preprocessing=Preprocessing(size=(32, 32)), labels=["a", "b"])
    frames = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    output, _ = model(frames)
    model.loss(output, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="trust"):
        from_pretrained(tmp_path / "model")
    again = from_pretrained(tmp_path / "model", trust=True)
    assert torch.allclose(again(frames, state=None)[0].logits, model.eval()(frames)[0].logits)


def test_the_page_of_layers(tmp_path):
    names: dict = {}
    exec(block("python", "layers.md"), names)
    assert names["y"].shape == (1, 16, 64)
    (tmp_path / "c.yaml").write_text(block("yaml", "layers.md"))
    config, _ = parse(["--config", str(tmp_path / "c.yaml"), "--data.root", "x", "--out", "y"])
    assert [type(m).__name__ for m in config.model.backbone.mixers()] == (["TTT"] * 3 + ["Attention"]) * 2
