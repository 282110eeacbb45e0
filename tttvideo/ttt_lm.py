"""Whole checkpoints of the authors' language models (test-time-training/ttt-lm-pytorch) as backbones of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backbone import RMS_EPS, Backbone, BackboneStack
from .files import read_json
from .printing import cause
from .ttt.convert import our_name, renamed, ttt_lm_config

# Inside a block, theirs -> ours; the names of the TTT layer stand in ttt/convert.py.
_BLOCK = {
    "seq_norm.weight": "mixer_norm.weight",
    "ffn_norm.weight": "mlp_norm.weight",
    "mlp.gate_proj.weight": "mlp.gate.weight",
    "mlp.up_proj.weight": "mlp.up.weight",
    "mlp.down_proj.weight": "mlp.down.weight",
    "conv.norm.weight": "pre_norm.weight",
    "conv.conv.weight": "pre_conv.weight",
    "conv.conv.bias": "pre_conv.bias",
}
_LEFT = ("embed_tokens.weight", "lm_head.weight")
"""Of words, for which a model of videos has no place; the second is the first where they are tied."""


class LanguageModel(NamedTuple):
    """The backbone of a ttt-lm checkpoint: its configuration, its weights under the names of ``BackboneStack``, and
    the names of the tensors that are left out (the embedding of words, and the output over them)."""

    config: Backbone
    tensors: dict[str, Tensor]
    left: list[str]

    def build(self) -> BackboneStack:
        """The stack with its weights, in their dtype: embedded tokens [B, T, C] -> normalised tokens [B, T, C]."""
        stack = self.config.build().to(self.tensors["norm.weight"].dtype)
        stack.load_state_dict(self.tensors)
        return stack


def is_ttt_lm(folder: Path) -> bool:
    """Whether a folder holds a checkpoint as ttt-lm's ``save_pretrained`` writes it."""
    file = folder / "config.json"
    return file.is_file() and read_json(file).get("model_type") == "ttt"


def read_ttt_lm(folder: str | Path) -> LanguageModel:
    """The backbone of a checkpoint: ``config.json`` beside ``*.safetensors`` or ``pytorch_model*.bin``, of one or
    several parts, in the Mamba-style or the transformer-style variant.

    Raises:
        ValueError: if it is none, is damaged, or differs from what the authors publish where ours has no setting.
    """
    folder = Path(folder)
    if not is_ttt_lm(folder):
        raise ValueError(f"{folder} holds no config.json of model_type ttt; give the folder of a ttt-lm checkpoint.")
    return from_tensors(_read(folder), read_json(folder / "config.json"), str(folder))


def from_tensors(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> LanguageModel:
    """The same of a state dict and the content of config.json; ``where`` names them in errors."""
    tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
    left = [name for name in tensors if name in _LEFT]
    taken = {name: value for name, value in tensors.items() if name not in _LEFT}
    prefix = "layers.0.seq_modeling_block."
    first = {name.removeprefix(prefix): value for name, value in taken.items() if name.startswith(prefix)}
    for name, value in (("rms_norm_eps", RMS_EPS), ("hidden_act", "silu")):
        if settings.get(name, value) != value:
            raise ValueError(f"{where} has {name} {settings[name]!r}; expected {value!r}, as the authors' models have.")
    numbers = {"ttt_base_lr": settings.get("ttt_base_lr"), "rope_theta": settings.get("rope_theta", 10000.0)}
    for name, value in numbers.items():
        if type(value) not in (int, float):
            raise ValueError(f"The config.json of {where} has {name} {value!r}; expected a number.")
    up, norm = taken.get("layers.0.mlp.up_proj.weight"), taken.get("norm.weight")
    if up is None or norm is None:
        raise ValueError(f"{where} holds no whole ttt-lm model: layers.0.mlp.up_proj.weight or norm.weight is missing.")
    hidden, width = _length(up), _length(norm)
    mixer = ttt_lm_config(
        first,
        num_heads=_length(first.get("W1")),
        mini_batch_size=_length(first.get("learnable_token_idx")),
        base_lr=numbers["ttt_base_lr"],
        rope_theta=numbers["rope_theta"],
    )
    exact = hidden / width
    config = Backbone(
        width=width,
        depth=len({name.split(".")[1] for name in taken if name.startswith("layers.")}),
        mixer=mixer,
        mlp_ratio=exact if int(exact * width) == hidden else (hidden + 0.5) / width,
        norm="rms",
        pre_conv="layers.0.conv.conv.weight" in taken,
    )
    with torch.device("meta"):
        expected = config.build().state_dict()
    what = f"{where} as {config.depth} blocks of width {width}"
    return LanguageModel(config, renamed(taken, _our_name, expected, what), left)


def _length(tensor: Tensor | None) -> int:
    """Of its first axis; 1 where that is none or empty, which then is a wrong shape."""
    return 1 if tensor is None or not tensor.dim() else max(1, len(tensor))


def _our_name(theirs: str) -> str:
    match = re.fullmatch(r"layers\.(\d+)\.(seq_modeling_block\.)?(.+)", theirs)
    if match is None:
        return theirs
    number, mixer, name = match.groups()
    return f"blocks.{number}." + (f"mixer.{our_name(name)}" if mixer else _BLOCK.get(name, name))


def _read(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    parts = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not parts:
        raise ValueError(f"{folder} holds no weights: neither *.safetensors nor pytorch_model*.bin.")
    tensors: dict[str, Tensor] = {}
    for part in parts:
        try:
            safe = part.suffix == ".safetensors"
            tensors |= load_file(part) if safe else torch.load(part, map_location="cpu", weights_only=True)
        except Exception as error:  # each library has errors of its own for damage
            raise ValueError(f"{part} cannot be read ({cause(error)}); the file is damaged.") from error
    return tensors
