"""The benchmark of cost: every layer has every figure, states are what they should be, and it is drawn."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import authors, cost, layer
from tttvideo.ttt.convert import from_ttt_lm


def test_figures_of_every_layer(tmp_path, monkeypatch, capsys):
    files = [tmp_path / "cost.json", tmp_path / "cost.png"]
    words = ["cost", "--frames", "4,8", "--rounds", "1", "--json", str(files[0]), "--figure", str(files[1])]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(cost, "STEPS", 2)
    monkeypatch.setattr(cost, "keep_memory", lambda: False)  # it would stay so for the other tests of this process
    cost.main()
    rows = json.loads(files[0].read_text())["rows"]
    assert len(rows) == 2 * len(cost.NAMES)
    by_mixer = {name: [row for row in rows if row["mixer"] == name] for name in cost.NAMES}
    for name, (short, long) in by_mixer.items():
        assert all(row[key] > 0 for row in (short, long) for key in (*cost.PANELS, "step_flops")), name
        grows = name in ("attention", "attention_window")  # both still fill their caches
        assert (long["state_bytes"] > short["state_bytes"]) == grows, name
        if not grows:  # linear in length: the same per frame
            assert long["prefill_flops_per_frame"] == pytest.approx(short["prefill_flops_per_frame"], rel=0.01), name
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert "TTT-MLP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--frames", "abc"], "--frames takes positive numbers"),
        (["--frames=-4"], "--frames takes positive numbers"),
        (["--frames", "4", "--rounds", "0"], "--rounds must be 1 or more"),
    ],
)
@pytest.mark.parametrize("benchmark", [cost, layer])
def test_mistakes_are_one_sentence(benchmark, words, said, monkeypatch, capsys):
    lengths = "--frames" if benchmark is cost else "--lengths"
    monkeypatch.setattr("sys.argv", ["benchmark", *(word.replace("--frames", lengths) for word in words)])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert said.replace("--frames", lengths) in capsys.readouterr().err


@pytest.mark.parametrize(("text", "said"), [(None, "is not there"), ("import no_such_package", "not installed")])
def test_the_authors_code_is_given(text, said, tmp_path, monkeypatch, capsys):
    file = tmp_path / "ttt.py"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr("sys.argv", ["benchmark", str(file)])
    with pytest.raises(SystemExit) as caught:
        authors.main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


class Theirs:
    """Stands for the authors' layer: ours, with their names of weights, and ``offset`` added to its outputs."""

    offset, calls = 0.0, 0

    def __init__(self, config, layer_idx):
        dim, heads = config.hidden_size, config.num_attention_heads
        shapes = {"W1": (heads, 64, 64), "b1": (heads, 1, 64), "learnable_token_idx": (16,)}
        shapes |= {f"ttt_norm_{name}": (heads, 64) for name in ("weight", "bias")}
        shapes |= {"learnable_ttt_lr_weight": (heads, 1, dim), "learnable_ttt_lr_bias": (heads, 1)}
        shapes |= {f"{name}_proj.weight": (dim, dim) for name in "qkvo"}
        shapes |= {f"post_norm.{name}": (dim,) for name in ("weight", "bias")}
        self.tensors = {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}
        ours = from_ttt_lm(self.tensors, num_heads=heads, mini_batch_size=16, base_lr=config.ttt_base_lr)
        self.layer = ours.layer

    def named_parameters(self):
        return self.tensors.items()

    def __call__(self, x, position_ids):
        type(self).calls += 1
        return self.layer(x)[0] + self.offset


def test_two_layers_take_turns(monkeypatch):
    """Their time over ours, whichever began; layers that differ are not compared."""
    module = SimpleNamespace(TTTConfig=SimpleNamespace, TTTLinear=Theirs, TTTMLP=Theirs)
    case, began = authors.Case("train", "linear", 1, 32, 2), []

    def seconds(run):
        before = Theirs.calls
        run()
        began.append(Theirs.calls > before)
        return 3.0 if began[-1] else 2.0

    monkeypatch.setattr(authors, "processor_seconds", seconds)
    assert authors.compare(module, case, 2) == {"theirs": 3.0, "ours": 2.0, "ratio": 1.5}
    assert began == [True, False, False, True]
    monkeypatch.setattr(Theirs, "offset", 1e-3)
    with pytest.raises(AssertionError, match=r"the two layers differ by 0\.001"):
        authors.compare(module, case, 1)


def test_a_prefill_that_would_take_too_long_is_skipped():
    layers = {"lstm": cost.MIXERS["lstm"].build(cost.DIM)}
    before = [{"mixer": "lstm", "frames": 4, "prefill_seconds_per_frame": 1.0}]
    (row,) = cost.measure(layers, 8, 1, cost.torch.device("cpu"), 10.0, before)
    assert "skipped" in row  # 4 s, growing to 16 s at worst
