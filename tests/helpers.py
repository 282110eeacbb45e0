"""Lists of components, so that every property test enrols every one of them; and small builders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils import _pytree as pytree

from tttvideo.backbone import Backbone
from tttvideo.encoder import ConvStem, Patches, Timm, Tubelets
from tttvideo.mixers import (
    GRU,
    LSTM,
    RWKV7,
    Attention,
    Bidirectional,
    ConvLSTM,
    FrameAttention,
    GatedDeltaNet,
    LinearAttention,
    Mamba,
    NoMixer,
)
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.tasks import Classification, Prediction
from tttvideo.ttt import (
    GLU,
    L2,
    MLP,
    SGD,
    TTT,
    Adam,
    Conv,
    ConvDepthwise,
    DotProduct,
    DWConv,
    FrameCausal,
    Learning,
    Linear,
    Momentum,
    Muon,
    ResidualL2,
    SelfAttention,
    TokenCausal,
    Whole,
)
from tttvideo.video.transforms import Preprocessing

GRID = (2, 3)
"""Token grid of one frame in property tests: not square, odd."""

N = GRID[0] * GRID[1]

DIM = 8
"""Channels of layers in property tests."""

ALL_INNER = [
    Linear(),
    MLP(),
    GLU(),
    Conv(),
    Conv(time=2),
    ConvDepthwise(),
    ConvDepthwise(time=3),
    DWConv(),
    DWConv(time=2),
    SelfAttention(),
]
ALL_CHUNKS = [TokenCausal(4), FrameCausal(1), FrameCausal(3), Whole(2)]
ALL_OBJECTIVES = [ResidualL2(), L2(), DotProduct()]
ALL_OPTIMIZERS = [
    SGD(),
    SGD(steps=2),
    SGD(clip=1.0),
    SGD(weight_norm=True),
    Momentum(),
    Adam(),
    Adam(steps=2, clip=0.5),
    Muon(),
    Muon(weight_norm=False, momentum=0.0),
]


def allowed(inner, chunk) -> bool:
    return not (inner.mixes_tokens and isinstance(chunk, TokenCausal))


DELTA_RULE = TTT(
    inner=Linear(bias=False),
    objective=L2(),
    heads=2,
    chunk=TokenCausal(1),
    normalize_qk=True,
    forget=True,
    rope=False,
    base_rate=2.0,
    learning=Learning(rate_scale=None, start="zero", forget_first=True),
)
DELTA_BY_FRAMES = dataclasses.replace(
    DELTA_RULE, chunk=FrameCausal(1), forget=False, learning=Learning(rate_scale=None, start="zero")
)
LACT = TTT(
    inner=GLU(),
    objective=DotProduct(),
    optimizer=Muon(rate=1.0, momentum="learned", coefficients="lact"),
    heads=2,
    chunk=Whole(2),
    normalize_qk=True,
    silu=True,
    learning=Learning(rate_per_map=True, start_rank=2),
)

OPTIONS = [
    TTT(inner=GLU(), objective=DotProduct(), optimizer=Muon(), heads=2, chunk=Whole(2)),  # LaCT's
    TTT(inner=DWConv(), objective=DotProduct(), optimizer=SGD(clip=1.0), heads=2),  # ViT^3's
    TTT(inner=DWConv(time=2), objective=DotProduct(), heads=2, chunk=FrameCausal(2)),
    TTT(inner=Linear(), objective=DotProduct(), heads=2, chunk=TokenCausal(4)),
    TTT(inner=Linear(), objective=DotProduct(), heads=2, chunk=Whole(2)),
    TTT(objective=L2(), heads=2, chunk=TokenCausal(4)),
    TTT(heads=2, chunk=TokenCausal(4), forget=True),
    TTT(heads=2, chunk=FrameCausal(1), forget=True),
    TTT(inner=DWConv(), objective=DotProduct(), heads=2, chunk=FrameCausal(2), forget=True),
    TTT(heads=2, chunk=FrameCausal(2), views=2),
    TTT(inner=Linear(), objective=DotProduct(), heads=2, chunk=TokenCausal(4), views=2),
    TTT(inner=Conv(), heads=2, chunk=FrameCausal(3), forget=True),
    TTT(heads=2, chunk=Whole(2), forget=True),
    TTT(heads=2, chunk=Whole(None)),
    TTT(inner=Linear(), objective=L2(), optimizer=SGD(steps=3), heads=2, chunk=Whole(None)),
    TTT(heads=2, chunk=TokenCausal(1)),
    TTT(heads=2, chunk=TokenCausal(100)),
    TTT(heads=2, chunk=TokenCausal(4), short_conv="raster", share_qk=True, gate=True),
    TTT(heads=2, chunk=FrameCausal(2), short_conv="raster", share_qk=True, gate=True, normalize_qk=True),
    TTT(heads=2, chunk=TokenCausal(3), objective=ResidualL2(normalize_target=True)),
    TTT(heads=2, short_conv="time", tanh_gate=0.1),
    TTT(heads=2, chunk=TokenCausal(4), short_conv="raster", conv_values=True),
    TTT(heads=1, chunk=FrameCausal(2), short_conv="time", conv_values=True, views=2),
    TTT(heads=1, chunk=FrameCausal(2), short_conv="time", rope="frame_row_column"),
    TTT(heads=2, chunk=TokenCausal(4), share_qk=True, learning=Learning(update="last", direction="ascent")),
    TTT(
        inner=GLU(), objective=DotProduct(), heads=2, chunk=FrameCausal(2), silu=True, learning=Learning(update="last")
    ),
    TTT(heads=2, forget=True, learning=Learning(gradient_at="start", forget_first=True)),
    TTT(heads=2, chunk=TokenCausal(4), learning=Learning(gradient_at="start", rate_per_map=True)),
    DELTA_RULE,
    DELTA_BY_FRAMES,
    LACT,
    TTT(inner=GLU(1.0, down=False), objective=DotProduct(), heads=2),
    TTT(inner=DWConv(), objective=DotProduct(), optimizer=SGD(clip=1.0, clip_by="column"), heads=2),
]
"""Layers for every option, and what other papers use."""

ALL_TTT = [
    *(TTT(inner=inner, heads=2, chunk=c) for inner in ALL_INNER for c in ALL_CHUNKS if allowed(inner, c)),
    *(TTT(optimizer=o, heads=2) for o in ALL_OPTIMIZERS[1:]),
    *OPTIONS,
]

SOME_TTT = [
    *(TTT(inner=ALL_INNER[1], heads=2, chunk=c) for c in ALL_CHUNKS),
    *(TTT(inner=inner, heads=2, chunk=ALL_CHUNKS[1 + i % 3]) for i, inner in enumerate(ALL_INNER)),
    *(TTT(optimizer=o, heads=2) for o in ALL_OPTIMIZERS[2::2]),
    *OPTIONS,
]
"""Every chunk, inner model and option once, and every other optimizer."""

FRAME_BASELINES = [
    Attention(heads=2),
    Attention(heads=2, window=3),
    Attention(heads=1, rope="time_and_place", short_conv="time"),
    LinearAttention(heads=2, chunk=13),
    LinearAttention(heads=2, feature_map="elu", normalizer=True, short_conv="time", share_qk=True, gate=True),
    FrameAttention(heads=2),
    ConvLSTM(),
    ConvLSTM(kernel=1, units=3),
]

TOKEN_BASELINES = [
    Attention(heads=2, causality="token"),
    Attention(heads=1, causality="token", window=7, rope="time_and_place", short_conv="raster"),
    LinearAttention(heads=2, causality="token", feature_map="silu", rope_period=4, short_conv="raster", chunk=5),
    Mamba(heads=2, state_dim=3, chunk=5),
    Mamba(heads=2, state_dim=3, short_conv="time"),
    GatedDeltaNet(heads=2, chunk=5),
    GatedDeltaNet(heads=2, expand=1, decay=False, gate=False, negative_eigenvalues=True, short_conv="time"),
    RWKV7(heads=2, chunk=5),
    RWKV7(heads=1, token_shift="time"),
    LSTM(),
    GRU(),
    NoMixer(),
]

BASELINES = [*FRAME_BASELINES, *TOKEN_BASELINES]

BIDIRECTIONAL = [
    Bidirectional(TTT(heads=2, chunk=FrameCausal(2))),
    Bidirectional(TTT(heads=2, chunk=TokenCausal(4)), share=True),
    *(Bidirectional(m, share=i % 2 == 0) for i, m in enumerate(BASELINES)),
]

ALL_MIXERS = [*ALL_TTT, *BASELINES, *BIDIRECTIONAL]

SOME_MIXERS = [*SOME_TTT, *BASELINES, *BIDIRECTIONAL[:4]]
"""One of each kind, for properties that hold for a reason that all of a kind share."""

ALL_ENCODERS = [
    Patches(8),
    Tubelets(8, frames=2),
    ConvStem((4, 8), (3, 2), (2, 1)),
    ConvStem((4, 8), (1, 3), (1, 2), inputs="both", norm="batch", pool=(2, 2)),
    ConvStem((4, 8), (2, 2), (2, 1), inputs="motion", motion_lag=3),
    Timm("test_resnet", pretrained="false", grid=(1, 1)),
    Timm("test_vit", pretrained="false", grid=(1, 2), frozen=False),
]


def frames_per_call(mixer) -> int:
    """A sequence may be cut at multiples of this many frames."""
    return max(1, mixer.build(8).unit(GRID[0] * GRID[1]) // (GRID[0] * GRID[1]))


def name(component: object) -> str:
    """A readable test id: the class, and the settings that are not its defaults."""
    if not dataclasses.is_dataclass(component):
        return str(component)
    said = []
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value != default:
            said.append(f"{field.name}={name(value)}")
    return f"{type(component).__name__}({','.join(said)})"


def kinds(component) -> set[str]:
    """The classes of a component and of those in it, and their settings that are not defaults."""
    found = {type(component).__name__}
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        if dataclasses.is_dataclass(value):
            found |= kinds(value)
        elif value != field.default:
            found.add(f"{type(component).__name__}.{field.name}={value}")
    return found


def each_kind(components) -> list:
    """Parameters of a test: few components, in which every class and every setting occurs; the others are `slow`."""
    left, chosen = set().union(*map(kinds, components)), []
    while left:
        chosen.append(max(components, key=lambda component: len(kinds(component) & left)))
        left -= kinds(chosen[-1])
    return [c if c in chosen else pytest.param(c, marks=pytest.mark.slow) for c in components]


def build(config, seed=0, dim=DIM):
    """The layer of a mixer, or a backbone, in float64, its biases, norms and position scales away from their neutral
    starting values."""
    torch.manual_seed(seed)
    layer = (config.build() if isinstance(config, Backbone) else config.build(dim)).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return layer


CLASSIFICATION, SMALL_TTT = Classification(), TTT(heads=2)


def video_model(
    task=CLASSIFICATION,
    encoder=Patches(8),
    mixer=SMALL_TTT,
    *,
    size=(32, 32),
    labels="ab",
    multi_label=False,
    width=16,
    **backbone,
):
    """A small model, always the same; one that predicts does not start from the last frame."""
    torch.manual_seed(0)
    config = ModelConfig(encoder, Backbone(width=width, mixer=mixer, **backbone), task)
    labels = list(labels) if task.labelled else []
    model = VideoModel(config, preprocessing=Preprocessing(size=size), labels=labels, multi_label=multi_label)
    if isinstance(task, Prediction):
        torch.nn.init.normal_(model.head.to_pixels.weight, std=0.05)
    return model


def examine(head, segments):
    """Whole videos, segment by segment: the rows [B, columns] that evaluation gets of them."""
    examiner = head.examiner()
    for _, lengths, output in segments:
        examiner.add(lengths, output)
    return examiner.rows()


def distance(a, b) -> float:
    """The largest difference between two tensors, or trees of tensors of one shape."""
    leaves = [pytree.tree_leaves(tree) for tree in (a, b)]
    pairs = [(x, y) for x, y in zip(*leaves, strict=True) if isinstance(x, torch.Tensor) and x.numel()]
    return max((float((x - y).detach().abs().max()) for x, y in pairs), default=0.0)


def recorded(name: str) -> dict[str, torch.Tensor]:
    """What other people's code gave (tests/recorded/README.md)."""
    return load_file(Path(__file__).parent / "recorded" / f"{name}.safetensors")
