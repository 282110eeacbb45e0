"""Weights of the authors' public layers (test-time-training/ttt-lm-pytorch and ttt-video-dit) in ours.

``ttt_lm.py`` beside the backbone reads whole checkpoints of ttt-lm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from .chunk import FrameCausal, TokenCausal
from .config import TTT
from .inner import MLP, Linear
from .layer import TTTLayer
from .objective import ResidualL2

# theirs -> ours; the names of ttt-lm's output projection, its gate and the norm after the heads agree.
_BOTH = {
    "learnable_ttt_lr_weight": "project.rate.weight",
    "learnable_ttt_lr_bias": "project.rate.bias",
    "ttt_norm_weight": "norm_scale",
    "ttt_norm_bias": "norm_shift",
    "W1": "weights.1_weight",
    "b1": "biases.1_bias",
    "W2": "weights.2_weight",
    "b2": "biases.2_bias",
}
_TTT_LM = _BOTH | {
    "q_proj.weight": "project.q_proj.weight",
    "k_proj.weight": "project.k_proj.weight",
    "v_proj.weight": "project.v_proj.weight",
    "learnable_token_idx": "scale_shift",
    "conv_q.weight": "project.convs.q.weight",
    "conv_q.bias": "project.convs.q.bias",
    "conv_k.weight": "project.convs.k.weight",
    "conv_k.bias": "project.convs.k.bias",
}
_TTT_VIDEO = {
    **{f"ssm.ttt.{theirs}": ours for theirs, ours in _BOTH.items()},
    **{f"ssm.ttt.w{x}.{part}": f"project.{x}_proj.{part}" for x in "qkv" for part in ("weight", "bias")},
    **{f"ssm.ttt.wo.{part}": f"o_proj.{part}" for part in ("weight", "bias")},
    **{f"ssm.ttt.post_norm.{part}": f"post_norm.{part}" for part in ("weight", "bias")},
    "forward_ssm_gating_video.gating_alpha": "alpha",
}
_REQUIRED = ("W1", "b1", "q_proj.weight", "v_proj.weight", "o_proj.weight", "learnable_token_idx")


class TTTLM(nn.Module):
    """A layer of the authors' model: ``forward(x [B, T, C]) -> y [B, T, C]`` over whole sequences.

    ``layer`` is the same thing with the state as argument and result, for streaming.
    """

    def __init__(self, layer: TTTLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class TTTVideo(NamedTuple):
    """``layer``, and the names of the block's tensors that have no place in it."""

    layer: TTTLayer
    left: list[str]


def our_name(theirs: str) -> str:
    """The name in ``TTTLayer.state_dict()`` of a parameter of ttt-lm's layer."""
    return _TTT_LM.get(theirs, theirs)


def from_ttt_lm(
    tensors: dict[str, Tensor],
    *,
    num_heads: int,
    mini_batch_size: int,
    base_lr: float,
    rope_theta: float = 10000.0,
) -> TTTLM:
    """The authors' TTT-Linear or TTT-MLP layer, with or without the Mamba variant's gate and shared q/k.

    Args:
        tensors: the layer's parameters under the authors' names (``W1``, ``q_proj.weight``, ...). Which
            variant they are is read from the names: ``W2`` MLP, ``conv_q`` shared q/k, ``g_proj`` gate.
        num_heads: H.
        mini_batch_size: K, tokens per inner step.
        base_lr: the authors' ``ttt_base_lr``.
        rope_theta: base of the rotary wavelengths.

    Returns:
        A module in the dtype of ``tensors``, mapping x [B, T, C] to y [B, T, C].

    Raises:
        ValueError: if a tensor is missing, unknown or of the wrong shape.
    """
    config = ttt_lm_config(tensors, num_heads, mini_batch_size, base_lr, rope_theta)
    what = f"a ttt-lm layer ({type(config.inner).__name__}, {num_heads} heads, a mini-batch of {mini_batch_size})"
    return TTTLM(_filled(config, tensors["q_proj.weight"], tensors, our_name, what))


def ttt_lm_config(
    tensors: Mapping[str, Tensor], num_heads: int, mini_batch_size: int, base_lr: float, rope_theta: float
) -> TTT:
    """The configuration of a layer of ttt-lm, of which variant its tensors' names tell.

    Raises:
        ValueError: if they are not such a layer's.
    """
    if missing := [name for name in _REQUIRED if name not in tensors]:
        raise ValueError(
            f"These tensors are not a ttt-lm layer: {', '.join(missing)} missing; pass the layer's own "
            "parameters without the prefix of the model they came from, or the whole checkpoint to "
            "tttvideo.ttt_lm.read_ttt_lm."
        )
    share_qk = "conv_q.weight" in tensors
    return TTT(
        inner=MLP() if "W2" in tensors else Linear(),
        heads=num_heads,
        chunk=TokenCausal(mini_batch_size),
        base_rate=base_lr,
        share_qk=share_qk,
        short_conv="raster" if share_qk else "none",
        gate="g_proj.weight" in tensors,
        rope_theta=rope_theta,
    )


def from_ttt_video(tensors: dict[str, Tensor], *, base_lr: float, rope_theta: float | None = None) -> TTTVideo:
    """The TTT layer of a block of ttt-video, as it reads forwards, and its gate tanh(alpha).

    Theirs reads chunks of ``mini_batch_size`` tokens as a whole; ours is one frame, of any number of tokens. Then
    theirs reads what came out once more, backwards, by the same weights and a gate of its own, and adds that:
    ``Bidirectional`` reads its input in both directions instead, so that gate has no place here, nor have the gates of
    text and the attention inside the block.

    Args:
        tensors: of one ``seq_modeling_block`` under the authors' names (``ssm.ttt.wq.weight``, ...,
            ``forward_ssm_gating_video.gating_alpha``), or of its ``ssm.ttt`` alone (``wq.weight``, ...).
        base_lr: the authors' ``ttt_base_lr``.
        rope_theta: base of the wavelengths by which q and k are turned by frame, row and column (10000.0: as theirs of
            video tokens); null: not turned, as theirs of text tokens, which is not what a block computes of a video.

    Returns:
        the layer in the dtype of ``tensors``, and the names of those that it does not take.

    Raises:
        ValueError: if a tensor of the layer is missing, unknown or of the wrong shape.
    """
    if "wq.weight" in tensors:
        tensors = {f"ssm.ttt.{name}": value for name, value in tensors.items()}
    taken = {name: value for name, value in tensors.items() if name.startswith("ssm.ttt.") or name in _TTT_VIDEO}
    if missing := [name for name in ("ssm.ttt.W1", "ssm.ttt.wq.weight") if name not in taken]:
        raise ValueError(
            f"These tensors are not a ttt-video block: {', '.join(missing)} missing; pass the parameters of one "
            "seq_modeling_block without the prefix of the model they came from."
        )
    config = TTT(
        inner=MLP() if "ssm.ttt.W2" in taken else Linear(),
        heads=len(taken["ssm.ttt.W1"]),
        chunk=FrameCausal(1),
        objective=ResidualL2(eps=1e-8, normalize_target=True),
        base_rate=base_lr,
        bias=True,
        tanh_gate=0.1 if "forward_ssm_gating_video.gating_alpha" in taken else None,
        normalize_qk=True,
        rope=False if rope_theta is None else "frame_row_column",
        rope_theta=10000.0 if rope_theta is None else rope_theta,
    )
    what = f"a ttt-video layer ({type(config.inner).__name__}, {config.heads} heads)"
    layer = _filled(config, taken["ssm.ttt.wq.weight"], taken, lambda name: _TTT_VIDEO.get(name, name), what)
    return TTTVideo(layer, sorted(set(tensors) - set(taken)))


def _filled(
    config: TTT, like: Tensor, tensors: Mapping[str, Tensor], name_of: Callable[[str], str], what: str
) -> TTTLayer:
    layer = TTTLayer(config, like.shape[0]).to(like.dtype)
    layer.load_state_dict(renamed(tensors, name_of, layer.state_dict(), what))
    return layer


def renamed(
    tensors: Mapping[str, Tensor], name_of: Callable[[str], str], expected: Mapping[str, Tensor], what: str
) -> dict[str, Tensor]:
    """``tensors`` under the names, and in the shapes, of ``expected``.

    Raises:
        ValueError: unless each of one has its place in the other.
    """
    ours: dict[str, Tensor] = {}
    for theirs, value in tensors.items():
        name = name_of(theirs)
        if name not in expected:
            raise ValueError(f"The tensor {theirs!r} has no place in {what}.")
        if _squeezed(value) != _squeezed(expected[name]):
            raise ValueError(
                f"The tensor {theirs!r} has shape {list(value.shape)}, which does not fit {what}; expected "
                f"{list(expected[name].shape)}."
            )
        ours[name] = value.detach().reshape(expected[name].shape)
    # The linear TTT layer of the authors may lack a convolution bias; such a bias is zero.
    for name in set(expected) - set(ours):
        if ".convs." in name and name.endswith(".bias"):
            ours[name] = next(iter(ours.values())).new_zeros(expected[name].shape)
    if absent := sorted(set(expected) - set(ours)):
        raise ValueError(f"These tensors are not the whole of {what}: nothing for {', '.join(absent)}.")
    return ours


def _squeezed(x: Tensor) -> list[int]:
    """The shape without axes of size 1, of which the two layers have different ones."""
    return [n for n in x.shape if n != 1]
