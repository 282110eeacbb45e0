"""The presets configs/layer-*.yaml against what the public code of those layers gave (tests/recorded)."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.small import configured
from tests.helpers import distance, recorded
from tttvideo.training.arguments import parse
from tttvideo.ttt import GLU, FrameCausal, Layout, TokenCausal
from tttvideo.ttt.convert import from_ttt_lm
from tttvideo.ttt.derivatives import affine
from tttvideo.ttt.inner_gradient import InnerLoop
from tttvideo.ttt.objective import Norm
from tttvideo.ttt.scan import scan
from tttvideo.ttt.state import Map, Moments, TTTState
from tttvideo.ttt.tokens import Tokens

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def preset(name):
    return parse(["--config", str(CONFIGS / f"layer-{name}.yaml")])[0].model.backbone.mixer


def leaves_of(tensors, prefix=""):
    """The recorded inputs, ready to be differentiated by: those with a recorded gradient."""
    start = f"{prefix}grad."
    return {
        k.removeprefix(start): tensors[prefix + k.removeprefix(start)].requires_grad_()
        for k in tensors
        if k.startswith(start)
    }


def loop_of(config, start, norm=None, grid=(1, 1)):
    norm = norm or Norm(torch.ones(()).double(), torch.zeros(()).double())
    optimizer = None if config.optimizer.linear else config.optimizer
    return InnerLoop(config.inner, config.objective, optimizer, norm, start, grid, learning=config.learning)


def state_of(config, weights):
    like = next(iter(weights.values())).weight
    zeros = {
        key: Map(torch.zeros_like(w), None if b is None else torch.zeros_like(b)) for key, (w, b) in weights.items()
    }
    fading, count = like.new_zeros(*like.shape[:2], 1, 1), like.new_zeros(like.shape[0], 0, 1, 1)
    moments = Moments((zeros,) * config.optimizer.averages, count)
    return TTTState(weights, None, fading, moments, None, {})


def whole(scale, size):
    return {"size": size, "scale": torch.full((size, 1), scale, dtype=torch.float64), "mask": None}


def gradients_agree(leaves, loss, tensors, prefix, tolerance):
    for (key, leaf), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        expected = tensors[f"{prefix}grad.{key}"]
        assert distance(gradient.reshape_as(leaf), expected) <= tolerance * (1 + float(expected.abs().max())), key


LACT = {"gate": "w0", "up": "w2", "down": "w1"}
"""Our names of its matrices, and theirs."""


def read_lact(config, tensors, leaves, start):
    """Three chunks, each read before it is learned, as theirs are; the last one is not learned."""
    q, k, v = (leaves[name][:, None] for name in "qkv")
    rate = torch.cat([leaves[LACT[key].replace("w", "lr")] for key in start], -1)[:, None, None]
    momentum = None
    if "momentum" in leaves:
        momentum = torch.cat((leaves["momentum"], torch.ones_like(leaves["momentum"])), -1)[:, None]
    loop, state, outputs, size = loop_of(config, start), state_of(config, start), [], 6
    for i in range(0, 18, size):
        part, weights = slice(i, i + size), state.weights
        outputs.append(config.inner(q[:, :, part], lambda name, x, own=weights: affine(own[name], x), (1, 1)))
        if i < 12:
            own = None if momentum is None else momentum[:, :, part]
            tokens = Tokens(q[:, :, part], k[:, :, None, part], v[:, :, None, part], rate[:, :, :, part], None, own)
            _, state = scan(loop, state, tokens, **whole(1 / size, size))
    return torch.cat(outputs, 2)[:, 0], state


def test_lact_without_momentum():
    """Newton-Schulz here adds 1e-14 to the squared length of a gradient, which is about 1e-6 long."""
    config, tensors = preset("lact"), recorded("lact")
    assert config.normalize_qk
    assert config.silu
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, momentum=0.0))
    leaves = leaves_of(tensors)
    start = {key: Map(leaves[theirs].mT[:, None], None) for key, theirs in LACT.items()}
    out, _ = read_lact(config, tensors, leaves, start)
    assert distance(out, tensors["o"]) <= 1e-6
    gradients_agree(leaves, (out * tensors["weight_o"]).sum(), tensors, "", 1e-5)


def test_lact():
    """With momentum by token and W_0 of low rank: outputs, weights, averages of gradients, all gradients."""
    config, tensors = preset("lact"), recorded("lact_momentum")
    assert config.optimizer.momentum == "learned"
    learning = dataclasses.replace(config.learning, start_rank=3)
    inner = dataclasses.replace(config.inner, expansion=2.0)
    layer = dataclasses.replace(config, heads=2, inner=inner, learning=learning).build(8).double()
    leaves = leaves_of(tensors)
    factors = {}  # theirs are transposed, so left is right
    for key in ("gate", "up"):
        factors[f"weights.{key}_weight"] = leaves[f"{LACT[key]}.right"].mT
        factors[f"right.{key}_right"] = leaves[f"{LACT[key]}.left"].mT
    factors["weights.down_weight"] = leaves["w1"].mT
    start = torch.func.functional_call(_Start(layer), {f"layer.{key}": w for key, w in factors.items()}, ())
    for key in ("gate", "up"):
        assert distance(start[key].weight[0].mT, tensors[f"W0.{LACT[key]}"]) <= 1e-15
    start = {key: Map(map.weight[0].repeat(2, 1, 1)[:, None], None) for key, map in start.items()}
    out, state = read_lact(layer.config, tensors, leaves, start)
    assert distance(out, tensors["o"]) <= 1e-6
    loss = (out * tensors["weight_o"]).sum()
    for key, theirs in LACT.items():
        assert distance(state.weights[key].weight[:, 0].mT, tensors[f"last.{theirs}"]) <= 1e-6
        average = -6 * state.moments.averages[0][key].weight[:, 0].mT  # theirs ascends, and sums over a chunk
        assert distance(average, tensors[f"average.{theirs}"]) <= 1e-9
        loss = loss + (state.weights[key].weight[:, 0].mT * tensors[f"weight_{theirs}"]).sum()
    gradients_agree(leaves, loss, tensors, "", 1e-5)


class _Start(torch.nn.Module):
    """W_0 as a function of its parameters."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return self.layer._start()


def test_vit3_depthwise():
    config, tensors = preset("vit3"), recorded("vit3")
    leaves = leaves_of(tensors)
    assert config.base_rate / 2 == pytest.approx(9**-0.5)  # a learned rate begins at half of its base
    assert config.learning.rate_scale is None
    start = {"1": Map(leaves["w"].flatten(1)[None, None, :, :, None], None)}  # [1, 1, channels, 9, 1]
    k, v = (leaves[key].flatten(2).mT[:, None, None] for key in "kv")
    batch, size = k.shape[0], k.shape[3]
    rate = torch.full((batch, 1, 1, size, 1), 9**-0.5, dtype=torch.float64)
    weights = {"1": Map(start["1"].weight.expand(batch, -1, -1, -1, -1), None)}
    tokens = Tokens(k[:, :, 0], k, v, rate)
    for cumulative in (False, True):
        loop = loop_of(config, start, grid=(3, 4))._replace(cumulative=cumulative)
        _, state = scan(loop, state_of(config, weights), tokens, **whole(1 / size, size))
        new = state.weights["1"].weight.reshape(tensors["new"].shape)
        assert distance(new, tensors["new"]) <= 1e-14
        gradients_agree(leaves, (new * tensors["weight"]).sum(), tensors, "", 1e-13)


def test_vit3_gated():
    """Its other half: SwiGLU without the last map."""
    config, tensors = dataclasses.replace(preset("vit3"), inner=GLU(1.0, down=False)), recorded("vit3")
    leaves = leaves_of(tensors, "glu.")
    weights = {key: Map(leaves[key].expand(2, -1, -1, -1), None) for key in ("gate", "up")}
    k, v = leaves["k"], leaves["v"]
    size = k.shape[2]
    rate = torch.full((2, 2, 1, size, 1), 9**-0.5, dtype=torch.float64)
    tokens = Tokens(k, k[:, :, None], v[:, :, None], rate)
    _, state = scan(loop_of(config, weights), state_of(config, weights), tokens, **whole(1 / size, size))
    loss = 0.0
    for key in ("gate", "up"):
        assert distance(state.weights[key].weight, tensors[f"glu.new_{key}"]) <= 1e-14
        loss = loss + (state.weights[key].weight * tensors[f"glu.weight_{key}"]).sum()
    gradients_agree(leaves, loss, tensors, "glu.", 1e-13)


def test_ttt_video():
    """Their op, which is handed its targets; 1e-7 is what they cut off of GELU's constants. With eps 1e-6 the outputs
    would be off by a fifth."""
    config, tensors = preset("ttt-video"), recorded("ttt_video")
    assert config.objective.normalize_target
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, normalize_target=False))
    assert (config.normalize_qk, config.tanh_gate, config.base_rate) == (True, 0.1, 0.1)
    leaves = leaves_of(tensors)
    start = {i: Map(leaves[f"W{i}"], leaves[f"b{i}"]) for i in "12"}
    norm = Norm(*(leaves[f"norm_{name}"][:, None] for name in ("weight", "bias")))
    q, k, v = (leaves[f"X{name}"].flatten(2, 3) for name in "QKV")
    rate, size = leaves["lr"].flatten(2)[:, :, None, :, None], leaves["XQ"].shape[3]
    weights = {key: Map(w.expand(2, -1, -1, -1), b.expand(2, -1, -1, -1)) for key, (w, b) in start.items()}
    tokens = Tokens(q, k[:, :, None], v[:, :, None], rate)
    for eps, low, high in ((config.objective.eps, 0.0, 1e-7), (1e-6, 0.1, 10.0)):
        changed = dataclasses.replace(config, objective=dataclasses.replace(config.objective, eps=eps))
        out, _ = scan(loop_of(changed, start, norm), state_of(config, weights), tokens, **whole(1 / size, size))
        out = out.unflatten(2, (-1, size)).permute(0, 2, 3, 1, 4)
        assert low <= distance(out, tensors["o"]) <= high
        if eps == config.objective.eps:
            gradients_agree(leaves, (out * tensors["weight_o"]).sum(), tensors, "", 1e-6)


def test_the_target_of_ttt_video():
    """Theirs is made before the op: k + LN(v - k)."""
    config, tensors = preset("ttt-video"), recorded("ttt_video")
    leaves = {key: tensors[key].requires_grad_() for key in ("XK", "XV", "norm_weight", "norm_bias")}
    norm = Norm(*(leaves[f"norm_{name}"][:, None] for name in ("weight", "bias")))
    k, v, z = leaves["XK"].flatten(2, 3), leaves["XV"].flatten(2, 3), tensors["XQ"].flatten(2, 3)
    target = k + config.objective.target(k, v, norm)
    assert distance(target, tensors["target"].flatten(2, 3)) <= 1e-14
    gradients_agree(leaves, (target.unflatten(2, (3, 6)) * tensors["target.weight"]).sum(), tensors, "target.", 1e-12)
    plain = dataclasses.replace(config.objective, normalize_target=False)
    given = config.objective.gradient(z, k, v, norm)
    assert distance(given, plain.gradient(z, k, tensors["target"].flatten(2, 3), norm)) <= 1e-13
    z = z.clone().requires_grad_()
    (by_definition,) = torch.autograd.grad(config.objective.loss(z, k, v, norm).sum(), z)
    assert distance(given, by_definition) <= 1e-13


def test_ttt_lm():
    """Their whole layer. Its table of rotary positions is float32, and GELU's constants are cut off."""
    tensors = recorded("ttt_lm")
    parameters = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    layer = from_ttt_lm(parameters, num_heads=2, mini_batch_size=16, base_lr=0.1, rope_theta=10000.0)
    assert dataclasses.replace(preset("ttt-lm"), heads=2, base_rate=0.1) == layer.layer.config
    x = tensors["x"].requires_grad_()
    y = layer(x)
    assert distance(y, tensors["y"]) <= 1e-6
    (gradient,) = torch.autograd.grad((y * tensors["loss_weight"]).sum(), x)
    assert distance(gradient, tensors["grad.x"]) <= 1e-5


@pytest.mark.parametrize("name", ["lact", "vit3", "ttt-video", "delta-rule"])
def test_chunks_are_frames(name):
    assert preset(name).chunk == FrameCausal(1)
    assert preset("ttt-lm").chunk == TokenCausal(16)


@pytest.mark.parametrize("recipe", ["folder", "folder-pretrained", "folder-video-encoder", "long-films"])
def test_a_preset_after_a_recipe_is_the_preset(recipe):
    """Settings of one class add up, so a preset says all that any recipe sets."""
    names = [file.stem.removeprefix("layer-") for file in CONFIGS.glob("layer-*.yaml")]
    assert {"lact", "vit3", "ttt-video", "ttt-lm", "ttt-mlp", "delta-rule"} <= set(names)
    for name in names:
        words = ["--config", str(CONFIGS / f"{recipe}.yaml"), "--config", str(CONFIGS / f"layer-{name}.yaml")]
        assert parse(words)[0].model.backbone.mixer == preset(name), name


def test_delta_rule():
    """A frame's step is the mean of DeltaNet's over its tokens; the fair comparison trains this preset."""
    config = preset("delta-rule")
    study = yaml.safe_load((CONFIGS / "study" / "fair.yaml").read_text())
    compared = {"model.backbone.mixer": study["variants"]["TTT delta rule raster"]["settings"]["model.backbone.mixer"]}
    assert configured({}, compared).model.backbone.mixer == config
    torch.manual_seed(0)
    layer, layout = config.build(8).double(), Layout((2, 3))
    x = torch.randn(2, 30, 8).double()
    y, state = layer(x, None, layout)
    q, k, v, rate, _, _ = layer._tokens(x, layer.init_state(2).tails, 0, layout)[0]
    assert distance(v[:, 0, 0], torch.nn.functional.silu(layer.project.v_proj(x))) <= 1e-14
    k, v, rate = (t[:, 0, 0].unflatten(1, (5, 6)).transpose(0, 1) for t in (k, v, rate))
    q = q[:, 0].unflatten(1, (5, 6)).transpose(0, 1)
    weight = torch.zeros(2, 8, 8).double()
    reads = []
    for queries, keys, values, rates in zip(q, k, v, rate, strict=True):
        weight = weight + keys.mT @ (rates * (values - keys @ weight)) / 6
        reads.append(queries @ weight)
    assert distance(y, layer.o_proj(layer.post_norm(torch.cat(reads, dim=1)))) <= 1e-13
    assert distance(state.weights["1"].weight[:, 0], weight) <= 1e-14
    assert distance(k.norm(dim=-1), torch.ones(5, 2, 6).double()) <= 1e-12
    assert 0.3 < rate.mean() < 0.7
