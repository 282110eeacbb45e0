"""Lists of components, so that every property test enrols every one of them; and small builders."""

from __future__ import annotations

from tttvideo.encoder import ConvStem, Patches, Timm, Tubelets
from tttvideo.mixers import Attention, NoMixer
from tttvideo.ttt import MLP, TTT, Conv, FrameCausal, Linear, TokenCausal

GRID = (2, 3)
"""Token grid of one frame in property tests: not square, odd."""

ALL_INNER = [Linear(), MLP(), Conv()]

ALL_TTT = [
    TTT(inner=inner, heads=2, chunk=chunk)
    for inner in ALL_INNER
    for chunk in (TokenCausal(4), FrameCausal(1), FrameCausal(3))
    if not (inner.mixes_tokens and isinstance(chunk, TokenCausal))
] + [
    TTT(heads=2, chunk=TokenCausal(4), share_qk=True, gate=True),
    TTT(heads=2, chunk=FrameCausal(2), share_qk=True, gate=True, normalize_qk=True),
]

ALL_MIXERS = [*ALL_TTT, Attention(heads=2), Attention(heads=2, causality="token"), NoMixer()]

FRAME_CAUSAL = [
    m
    for m in ALL_MIXERS
    if not (isinstance(m, TTT) and isinstance(m.chunk, TokenCausal))
    and not (isinstance(m, Attention) and m.causality == "token")
]

ALL_ENCODERS = [
    Patches(8),
    Tubelets(8, frames=2),
    ConvStem((4, 8), (3, 2), (2, 1)),
    ConvStem((4, 8), (1, 3), (1, 2), inputs="both", norm="batch", pool=(2, 2)),
    ConvStem((4, 8), (2, 2), (2, 1), inputs="motion", motion_lag=3),
    Timm("resnet18", pretrained="false", grid=(1, 1)),
    Timm("vit_tiny_patch16_224", pretrained="false", grid=(1, 2), frozen=False),
]


def name(component: object) -> str:
    """A readable test id."""
    return repr(component).replace(" ", "")
