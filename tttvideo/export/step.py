"""One streaming step as a function of named tensors: frames and state in, answer and state out.

Everything that a model remembers is a tensor that goes in as NAME and comes out as ``new_NAME``; nothing is kept
inside. The step reads whole units of frames only, so nothing in it depends on values: it can be traced once, inner
gradients included, and is right for every step after the first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..mixers import Attention
from ..model import ModelState, VideoModel
from .config import ExportError

SETTLING = 2048
"""Units after which a state has its full size (windows and tails fill up), or never will."""


class Step(nn.Module):
    """``forward(frames, *state) -> (answer, *new state)``.

    Attributes:
        unit: frames that a step reads.
        names: of the state's tensors, in order.
        initial: their values before the first frame; full size from the start.
        answer: name of the first output: ``probabilities`` [B, classes] of everything so far, or ``upcoming``
            [B, p, 3, height, width] in 0..1, the frames that are expected next.

    Args:
        model: any that streams with a state of constant size.
        batch: streams side by side.

    Raises:
        ExportError: for another model, with the name of the layer.
    """

    def __init__(self, model: VideoModel, batch: int = 1):
        super().__init__()
        _check(model)
        self.model = model.eval()
        self.batch = batch
        rows, columns = model.encoder.grid
        tokens = rows * columns
        self.unit = model.encoder.stride * (math.lcm(model.backbone.step_unit(tokens), tokens) // tokens)
        self.answer = "probabilities" if model.head.generated is None else "upcoming"
        leaves, self._tree = pytree.tree_flatten_with_path(_settled(self._read, model, self.frames()))
        self._fixed: dict[int, Any] = {}
        self._varying: list[tuple[int, str]] = []
        self.initial: list[Tensor] = []
        for number, (path, leaf) in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.numel():
                self._varying.append((number, _name(path)))
                self.initial.append(leaf)
            else:
                self._fixed[number] = leaf
        self._drop_constant()

    @property
    def names(self) -> list[str]:
        return [name for _, name in self._varying]

    def frames(self) -> Tensor:
        """Black frames of the right shape, uint8 [B, unit, height, width, 3]."""
        return torch.zeros(self.batch, self.unit, *self.model.preprocessing.size, 3, dtype=torch.uint8)

    def forward(self, frames: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            frames: uint8 [B, unit, height, width, 3], of the model's own size.
            state: tensors as ``initial`` has them.
        """
        leaves = dict(self._fixed) | {number: value for (number, _), value in zip(self._varying, state, strict=True)}
        before = pytree.tree_unflatten([leaves[number] for number in range(len(leaves))], self._tree)
        answer, after = self._read(frames, before)
        new = pytree.tree_leaves(after)
        return answer, *(new[number] for number, _ in self._varying)

    def _read(self, frames: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """As ``VideoModel.read``, by the steps of its parts."""
        model, pixels = self.model, frames.permute(0, 1, 4, 2, 3)
        tokens, encoder = model.encoder.step(pixels, state.encoder)
        mixed, backbone = model.backbone.step(tokens.flatten(1, 2), state.backbone, model.encoder.grid)
        output, task = model.head(mixed.unflatten(1, tokens.shape[1:3]), None, pixels, None, state.task)
        if self.answer == "upcoming":
            answer = model.head.bounded(output.upcoming)
        else:
            answer = model.probabilities(output.logits.float())
        return answer, ModelState(encoder, backbone, task)

    def _drop_constant(self) -> None:
        """What no step changes is no state: it stays inside."""
        with torch.no_grad():
            _, *first = self(self.frames() + 99, *self.initial)
            _, *second = self(self.frames() + 30, *first)
        kept = []
        for (number, name), initial, *later in zip(self._varying, self.initial, first, second, strict=True):
            if all(torch.equal(initial, value) for value in later):
                self._fixed[number] = initial
            else:
                kept.append(((number, name), initial))
        self._varying, self.initial = [pair for pair, _ in kept], [initial for _, initial in kept]


def trace(step: Step) -> torch.fx.GraphModule:
    """The step as a graph of plain operators, the inner gradients among them."""
    from torch.fx.experimental.proxy_tensor import make_fx

    plain = {torch.ops.aten.linalg_solve_triangular.default: solve_unit_lower}
    with _plain_operators():
        return make_fx(step, decomposition_table=plain, tracing_mode="real")(step.frames(), *step.initial)


def solve_unit_lower(A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """A^-1 B, A [..., n, n] lower triangular with ones on its diagonal, B [..., n, m]: row after row, of operators that
    every runtime has (Gated DeltaNet solves for what a chunk writes)."""
    if upper or not left or not unitriangular:
        return NotImplemented
    rows = [B[..., :1, :]]
    for t in range(1, B.shape[-2]):
        rows.append(B[..., t : t + 1, :] - A[..., t : t + 1, :t] @ torch.cat(rows, dim=-2))
    return torch.cat(rows, dim=-2)


@contextmanager
def _plain_operators():
    """No operators of one library or machine in what is traced."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield


def _check(model: VideoModel) -> None:
    for mixer in model.config.backbone.mixers():
        name = type(mixer).__name__
        if isinstance(mixer, Attention) and mixer.window is None:
            raise ExportError(
                f"{name} without a window remembers every frame, so that its state grows and no step can be exported; "
                "train with a window, or export the folder"
            )
        layer = mixer.build(model.config.backbone.width)
        if not layer.streams:
            chunk = getattr(mixer, "chunk", None)
            of = f" with {type(chunk).__name__} chunks of the whole video" if chunk is not None else ""
            raise ExportError(
                f"{name}{of} sees the end of a video first, so that there is no streaming step; export the folder"
            )
    if model.head.reads_features:
        raise ExportError("a model that predicts features has no pictures to put out; export the folder")


def _settled(read: Callable, model: VideoModel, frames: Tensor) -> ModelState:
    """The state before the first frame, with every tensor as large as it will be. What was not there yet is zero, and
    numbers of tokens that are not there are -1."""
    with torch.no_grad():
        start = model.init_state(len(frames))
        state, shapes = start, None
        for _ in range(SETTLING):
            _, state = read(frames, state)
            before, shapes = shapes, [getattr(leaf, "shape", None) for leaf in pytree.tree_leaves(state)]
            if shapes == before:
                break
        else:
            raise ExportError(
                f"the state of this model still grows after {SETTLING} steps, so that no step can be exported"
            )

    def full(first: Any, last: Any) -> Any:
        if not isinstance(first, Tensor) or first.shape == last.shape:
            return first.clone() if isinstance(first, Tensor) else first
        return torch.full(last.shape, 0 if last.is_floating_point() else -1, dtype=last.dtype)

    leaves, tree = pytree.tree_flatten(start)
    pairs = zip(leaves, pytree.tree_leaves(state), strict=True)
    return pytree.tree_unflatten([full(*pair) for pair in pairs], tree)


def _name(path: Any) -> str:
    """``backbone_0_mixer_weights_1_weight`` for state.backbone[0].mixer.weights['1'].weight."""
    return re.sub(r"\W+", "_", pytree.keystr(path)).strip("_")
