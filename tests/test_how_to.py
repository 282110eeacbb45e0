"""docs/how-to: the code of each page is used as a reader would use it."""

import re
import sys
from pathlib import Path

import pytest
import torch

from tttvideo.model import VideoModel
from tttvideo.pretrained import from_pretrained
from tttvideo.training.arguments import parse

PAGES = Path(__file__).parents[1] / "docs" / "how-to"
SMALL = ["--model.backbone.width", "16", "--model.backbone.depth", "1", "--data.size", "32,32"]


def model_of(page: str, words: list[str], folder, monkeypatch) -> VideoModel:
    code = re.search(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)
    assert code is not None
    (folder / "mine.py").write_text(code[1])
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    config, _ = parse([*SMALL, *words])
    return VideoModel(config.model, preprocessing=config.data.preprocessing, labels=list("abc"))


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("encoder.md", ["--model.encoder", "mine.SmallNet", "--model.encoder.channels", "8"]),
        ("task.md", ["--model.task", "mine.Weighted", "--model.task.weights", "1,1,2"]),
    ],
)
def test_an_encoder_and_a_task_of_the_readers_own(page, words, tmp_path, monkeypatch):
    model = model_of(page, words, tmp_path, monkeypatch)
    frames = torch.randint(0, 256, (2, 6, 3, 32, 32), dtype=torch.uint8)
    output, _ = model(frames)
    model.loss(output, torch.tensor([0, 2])).backward()
    assert all(p.grad is not None for p in model.parameters())

    model.eval()
    with torch.no_grad():
        whole, _ = model(frames)
        _, state = model(frames[:, :4])
        last, _ = model(frames[:, 4:], None, state)
    torch.testing.assert_close(last.logits, whole.logits, rtol=0, atol=1e-5)

    model.save_pretrained(tmp_path / "exported")
    with pytest.raises(ValueError, match="trust=True"):
        from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        again, _ = from_pretrained(tmp_path / "exported", trust=True).eval()(frames)
    assert torch.equal(again.logits, whole.logits)


def test_the_weights_of_the_task_weigh(tmp_path, monkeypatch):
    words = ["--model.task", "mine.Weighted", "--model.task.weights"]
    losses = []
    for weights in ("1,1,1", "1,1,3"):
        torch.manual_seed(0)
        model = model_of("task.md", [*words, weights], tmp_path, monkeypatch).eval()
        output, _ = model(torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8))
        losses.append(model.loss(output, torch.tensor([2])))
    torch.testing.assert_close(losses[1], 3 * losses[0])
    with pytest.raises(ValueError, match=r"Weighted.weights has 2 numbers for 3 classes"):
        model_of("task.md", [*words, "1,1"], tmp_path, monkeypatch)
