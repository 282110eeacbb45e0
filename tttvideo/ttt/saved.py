"""Gradients inside a forward pass, next to activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def at_hand() -> Iterator[None]:
    """While it lasts, gradients find at once what autograd saved for them, whatever hooks are told to store it.

    A gradient taken inside a checkpointed function asks for tensors that the checkpoint has already thrown away, and
    the whole function is computed again for it: for every chunk of a group all chunks before it, which took up to
    twenty times as long as without checkpoints, and more memory. Inside this block tensors are handed to the hooks
    in force, as ever, but also kept until its end.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)  # type: ignore[attr-defined]
    if hooks is None:
        yield
        return
    pack, unpack = hooks
    kept: list[_Saved] = []

    def keep(x: Tensor) -> _Saved:
        kept.append(_Saved(x, pack(x), unpack))
        return kept[-1]

    with torch.autograd.graph.saved_tensors_hooks(keep, _Saved.tensor):
        yield
    for saved in kept:
        saved.x = None


class _Saved:
    """A tensor, while it is at hand, and what the hooks in force made of it."""

    def __init__(self, x: Tensor, packed: Any, unpack: Callable[[Any], Tensor]):
        self.x: Tensor | None = x
        self.packed, self.unpack = packed, unpack

    def tensor(self) -> Tensor:
        return self.unpack(self.packed) if self.x is None else self.x
