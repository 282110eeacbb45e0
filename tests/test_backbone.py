"""The stack: hybrids by a pattern, attention inside frames, what is known of the whole from its blocks."""

import itertools

import pytest
import torch
import yaml

from tests.helpers import BASELINES, GRID, build, name
from tttvideo.backbone import Backbone
from tttvideo.mixers import LSTM, Attention, Bidirectional, FrameAttention, LinearAttention, Mamba
from tttvideo.plain import from_plain, to_plain
from tttvideo.training.arguments import parse
from tttvideo.training.config import ConfigError
from tttvideo.ttt import TTT, FrameCausal, Layout, TokenCausal, Whole

N = GRID[0] * GRID[1]
DIM = 8

HYBRIDS = [
    Backbone(DIM, 4, pattern=[TTT(heads=2), TTT(heads=2), TTT(heads=2), Attention(heads=2, window=2)]),
    Backbone(DIM, 3, pattern=[Mamba(heads=2), LSTM()], pre_conv=True),
    Backbone(DIM, 2, TTT(heads=2, chunk=TokenCausal(4)), frame_attention=2),
    Backbone(DIM, 2, pattern=[TTT(heads=2, chunk=Whole(2)), LinearAttention(heads=2)], frame_attention=1),
    Backbone(DIM, 0),
    *(Backbone(DIM, 1, mixer, pre_conv=True) for mixer in BASELINES),
]


@pytest.mark.parametrize("config", HYBRIDS, ids=name)
def test_streamed_and_padded_is_whole(config):
    stack = build(config)
    assert stack.streams
    unit = stack.unit(N)
    x = torch.randn(2, 12 * N, DIM).double()
    lengths = torch.tensor([12, 7]) * N
    with torch.no_grad():
        whole, _ = stack(x, None, Layout(GRID, lengths))
        for row, length in enumerate(lengths.tolist()):
            alone, _ = stack(x[row : row + 1, :length], None, Layout(GRID))
            assert (alone[0] - whole[row, :length]).abs().max() <= 1e-12
        state, outputs = None, []
        for start, stop in itertools.pairwise([0, *range(2 * N // unit * unit or unit, 12 * N, 4 * unit), 12 * N]):
            part = (lengths - start).clamp(0, stop - start)
            y, state = stack(x[:, start:stop], state, Layout(GRID, part))
            outputs.append(y)
    for found, expected, length in zip(torch.cat(outputs, 1), whole, lengths.tolist(), strict=True):
        assert (found[:length] - expected[:length]).abs().max() <= 1e-12


def test_a_pattern_is_repeated_down_the_stack():
    a, b = TTT(heads=2), Attention(heads=2)
    assert Backbone(DIM, 7, pattern=[a, a, b]).mixers() == [a, a, b, a, a, b, a]
    assert Backbone(DIM, 2, mixer=b).mixers() == [b, b]
    kinds = [type(block.mixer).__name__ for block in Backbone(DIM, 3, pattern=[a, b]).build().blocks]
    assert kinds == ["TTTLayer", "AttentionLayer", "TTTLayer"]


def test_units_and_streams_of_the_stack():
    def stack(*pattern, **options):
        return Backbone(DIM, len(pattern), pattern=list(pattern), **options).build()

    token, two, three = TTT(heads=2, chunk=TokenCausal(4)), *(TTT(heads=2, chunk=Whole(n)) for n in (2, 3))
    assert stack(token, LSTM()).unit(N) == 1
    assert stack(token, frame_attention=2).unit(N) == N
    assert stack(token, TTT(heads=2, chunk=FrameCausal(4))).unit(N) == N
    assert stack(two, three).unit(N) == 6 * N
    assert stack(token).causal
    assert not stack(token, two).causal
    both = stack(token, Bidirectional(token))
    assert not both.streams
    assert not both.causal


def test_frame_attention_mixes_each_frame_before_the_mixer():
    """With it a token sees later tokens of its own frame, though the mixer is token-causal; later frames never."""
    stack = build(HYBRIDS[2])
    x = torch.randn(1, 3 * N, DIM).double()
    changed = x.clone()
    changed[:, 2 * N - 1] += torch.randn(DIM).double()
    with torch.no_grad():
        before, after = (stack(t, None, Layout(GRID))[0] for t in (x, changed))
    assert torch.equal(before[:, :N], after[:, :N])
    assert (before[:, N] - after[:, N]).abs().max() > 1e-6
    with pytest.raises(ValueError, match="whole frames"):
        stack(x[:, : N + 1], None, Layout(GRID))


@pytest.mark.parametrize("config", HYBRIDS, ids=name)
def test_every_parameter_has_a_gradient(config):
    stack = config.build()
    stack(torch.randn(1, 4 * N, DIM), None, Layout(GRID))[0].square().sum().backward()
    assert [key for key, p in stack.named_parameters() if p.grad is None] == []


YAML = """
model:
  backbone:
    depth: 4
    frame_attention: 2
    pattern:
    - TTT
    - class_path: TTT
      init_args: {inner: Linear, heads: 2}
    - class_path: Attention
      init_args: {window: 8}
    - class_path: Bidirectional
      init_args:
        mixer: {class_path: Mamba, init_args: {state_dim: 16}}
        share: true
"""


def test_a_hybrid_in_yaml(tmp_path):
    """From a file to the configuration, to the run's own file, to config.json, and back."""
    from tttvideo.ttt import Linear

    file = tmp_path / "config.yaml"
    file.write_text(YAML)
    config, text = parse(["--config", str(file)])
    backbone = config.model.backbone
    expected = [
        TTT(),
        TTT(inner=Linear(), heads=2),
        Attention(window=8),
        Bidirectional(Mamba(state_dim=16), share=True),
    ]
    assert backbone == Backbone(depth=4, frame_attention=2, pattern=expected)
    assert [type(block.mixer).__name__ for block in backbone.build().blocks][2] == "AttentionLayer"
    assert "state_dim: 16" in text
    assert yaml.safe_load(text)["model"]["backbone"]["pattern"][2]["init_args"]["heads"] == 4  # defaults, too
    (tmp_path / "again.yaml").write_text(text)
    assert parse(["--config", str(tmp_path / "again.yaml")])[0].model.backbone == backbone
    assert from_plain(to_plain(backbone)) == backbone
    words = ["--model.backbone.pattern", "[LSTM, {class_path: LinearAttention, init_args: {heads: 1}}]"]
    assert parse(["--config", str(file), *words])[0].model.backbone.pattern == [LSTM(), LinearAttention(heads=1)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pattern: [TTTT]", "pattern.*TTTT"),
        ("pattern: [{class_path: Attention, init_args: {windw: 3}}]", "windw"),
        ("pattern: TTT", "pattern"),
        ("frame_attention: -1", "at least 1, or 0"),
    ],
)
def test_mistakes_are_named(tmp_path, text, words):
    file = tmp_path / "config.yaml"
    file.write_text(f"model:\n  backbone:\n    {text}\n")
    with pytest.raises(ConfigError, match=words) as found:
        parse(["--config", str(file)])
    assert "\n" not in str(found.value)


def test_a_pattern_holds_mixers():
    with pytest.raises(ValueError, match="name a sequence layer"):
        Backbone(pattern=["TTT"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="8 channels into 3 heads"):
        Backbone(8, frame_attention=3).build()
    assert Backbone(pattern=[FrameAttention()]).mixers() == [FrameAttention()] * 2


@pytest.mark.parametrize("config", HYBRIDS, ids=name)
def test_packed_is_separate(config):
    """No layer of the stack sees over the border between two sequences of a packed row."""
    stack = build(config)
    lengths = torch.tensor([2, 0, 4]) * N
    ends = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    x = torch.randn(1, int(ends[-1]), DIM).double()
    y, state = stack(x, None, Layout(GRID, cu_seqlens=ends))
    for start, stop in itertools.pairwise(ends.tolist()):
        if start < stop:
            alone, _ = stack(x[:, start:stop], None, Layout(GRID))
            assert (y[:, start:stop] - alone).abs().max() <= 1e-12
    assert len(state) == len(stack.blocks)
