"""Weights of the authors' public layer (test-time-training/ttt-lm-pytorch) in ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .chunk import TokenCausal
from .config import TTT
from .inner import MLP, Linear
from .layer import TTTLayer

# theirs -> ours; the names of the output's projection, gate and norm agree.
_RENAMED = {
    "q_proj.weight": "project.q_proj.weight",
    "k_proj.weight": "project.k_proj.weight",
    "v_proj.weight": "project.v_proj.weight",
    "learnable_token_idx": "scale_shift",
    "learnable_ttt_lr_weight": "project.rate.weight",
    "learnable_ttt_lr_bias": "project.rate.bias",
    "ttt_norm_weight": "norm_scale",
    "ttt_norm_bias": "norm_shift",
    "W1": "weights.1_weight",
    "b1": "biases.1_bias",
    "W2": "weights.2_weight",
    "b2": "biases.2_bias",
    "conv_q.weight": "project.convs.q.weight",
    "conv_q.bias": "project.convs.q.bias",
    "conv_k.weight": "project.convs.k.weight",
    "conv_k.bias": "project.convs.k.bias",
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


def our_name(theirs: str) -> str:
    """The name in ``TTTLayer.state_dict()`` of a parameter of the authors' layer."""
    return _RENAMED.get(theirs, theirs)


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
    missing = [name for name in _REQUIRED if name not in tensors]
    if missing:
        raise ValueError(
            f"These tensors are not a ttt-lm layer: {', '.join(missing)} missing; pass the layer's own "
            "parameters without the prefix of the model they came from."
        )
    share_qk = "conv_q.weight" in tensors
    config = TTT(
        inner=MLP() if "W2" in tensors else Linear(),
        heads=num_heads,
        chunk=TokenCausal(mini_batch_size),
        base_rate=base_lr,
        share_qk=share_qk,
        short_conv="raster" if share_qk else "none",
        gate="g_proj.weight" in tensors,
        rope_theta=rope_theta,
    )
    layer = TTTLayer(config, tensors["q_proj.weight"].shape[0]).to(tensors["q_proj.weight"].dtype)
    expected = layer.state_dict()
    ours: dict[str, Tensor] = {}
    for theirs, value in tensors.items():
        name = our_name(theirs)
        if name not in expected:
            raise ValueError(f"The tensor {theirs!r} has no place in a {type(config.inner).__name__} TTT layer.")
        if _squeezed(value) != _squeezed(expected[name]):
            raise ValueError(
                f"The tensor {theirs!r} has shape {list(value.shape)}, which does not fit {num_heads} heads and "
                f"a mini-batch of {mini_batch_size}; expected {list(expected[name].shape)}."
            )
        ours[name] = value.detach().reshape(expected[name].shape)
    # The linear TTT layer of the authors may lack a convolution bias; such a bias is zero.
    for name in set(expected) - set(ours):
        if name.startswith("project.convs.") and name.endswith(".bias"):
            ours[name] = torch.zeros_like(expected[name])
    if absent := sorted(set(expected) - set(ours)):
        raise ValueError(f"These tensors are not a whole ttt-lm layer: nothing for {', '.join(absent)}.")
    layer.load_state_dict(ours)
    return TTTLM(layer)


def _squeezed(x: Tensor) -> list[int]:
    """The shape without axes of size 1, of which the two layers have different ones."""
    return [n for n in x.shape if n != 1]
