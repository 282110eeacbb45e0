"""One streaming step, again and again: static memory, and on a GPU one CUDA graph in place of hundreds of launches.

    stream = Stream(lambda x, state: layer(x, state, layout), x, layer.init_state(1))
    for frame in frames:        # each shaped like x
        y = stream(frame)       # valid until the next call
    state = stream.state        # a copy, to go on with elsewhere

What a layer remembers is of two kinds. Tensors on the device have memory of their own here and are moved in place.
What stands on the host (a TTT layer's place in its chunk) decides shapes and control flow, so that a recorded graph
holds for one value of it: there is a graph for each, and a step's graph says which value comes next. A frame-causal
layer has one graph, a token-causal one as many as its chunk has tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .interface import State

Step = Callable[[Tensor, State], tuple[Any, State]]

SETTLING = 8
"""Steps after which no tensor of a state may change its shape any more (tails of convolutions fill up at first)."""

GRAPHS = 64
"""Values of a state's host side that are recorded: more than a token-causal chunk has tokens."""


class _Recorded(NamedTuple):
    """A step as it can be run again: ``replay`` moves the state's memory, leaves ``output`` in memory of its own, and
    the host side is ``after`` then."""

    replay: Callable[[], None]
    output: Any
    after: tuple[Tensor, ...]


class Stream:
    """``step`` with a state that is moved in place. No gradients.

    The first call with a new value of the state's host side runs the step as it is, then records it; later ones replay.
    On a CPU "replaying" runs the step on the same memory: the same results, no gain.

    Args:
        step: (x, state) -> (output, state): a layer's or model's call, without gradients. Nothing in it may depend on
            the values of device tensors or copy from the host.
        x: an input of the shape, type and device of all that will come.
        state: where the sequence stands; copied. The rows of a batch must be of one age: each age would need a graph.

    Raises:
        ValueError: where the state keeps growing or counting, so that no step can be run twice; and in a call, if the
            input is shaped unlike the first.
    """

    def __init__(self, step: Step, x: Tensor, state: State):
        self._step = step
        self._x = x.detach().clone()
        leaves, self._tree = pytree.tree_flatten(state)
        self._device = [_held(leaf, x.device) for leaf in leaves]
        self._buffers = [leaf.detach().clone() for leaf, held in zip(leaves, self._device, strict=True) if held]
        self._host = tuple(leaf for leaf, held in zip(leaves, self._device, strict=True) if not held)
        self._recorded: dict[Any, _Recorded] = {}
        self._grown = 0
        self._pool: Any = None

    @property
    def state(self) -> State:
        """A copy of the state after all calls so far."""
        return pytree.tree_unflatten(self._leaves([buffer.clone() for buffer in self._buffers]), self._tree)

    @property
    def graphs(self) -> int:
        """Steps recorded so far."""
        return len(self._recorded)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Any:
        """Reads ``x`` and returns the step's output, in memory that the next call writes to."""
        if x.shape != self._x.shape or x.dtype != self._x.dtype:
            raise ValueError(
                f"This stream reads inputs of {list(self._x.shape)} in {self._x.dtype}, not {list(x.shape)} in "
                f"{x.dtype}; make another Stream for another shape."
            )
        self._x.copy_(x)
        key = tuple(_plain(leaf) for leaf in self._host)
        recording = self._recorded.get(key)
        if recording is not None:
            recording.replay()
            self._host = recording.after
            return recording.output
        return self._first(key)

    def _first(self, key: Any) -> Any:
        """A step as it is, then its recording."""
        if len(self._recorded) >= GRAPHS:
            raise ValueError(
                f"The state counts on without end ({GRAPHS} steps, none like another), so that no step can be "
                "recorded; call the layer itself."
            )
        before = [(buffer.shape, buffer.dtype) for buffer in self._buffers]
        output, device, host = self._run()
        if [(x.shape, x.dtype) for x in device] == before:
            self._recorded[key] = self._record(output, host)
            for buffer, x in zip(self._buffers, device, strict=True):
                buffer.copy_(x)
        else:
            self._grown += 1
            if self._grown > SETTLING:
                raise ValueError(
                    "The state grows with every step (a cache of keys and values does), so that no step can be "
                    "recorded; call the layer itself."
                )
            self._recorded.clear()  # of memory that is no longer the state's
            self._buffers = [x.clone() for x in device]
        self._host = host
        return output

    def _run(self) -> tuple[Any, list[Tensor], tuple[Any, ...]]:
        """Output, device side and host side of the state after one step on the static memory."""
        output, state = self._step(self._x, pytree.tree_unflatten(self._leaves(self._buffers), self._tree))
        leaves, tree = pytree.tree_flatten(state)
        assert tree == self._tree, "a step must return a state like the one that it was given"
        sides = list(zip(leaves, self._device, strict=True))
        return output, [x for x, held in sides if held], tuple(x for x, held in sides if not held)

    def _record(self, output: Any, host: tuple[Any, ...]) -> _Recorded:
        """The step on the static memory as it stands; ``output`` has the shapes of what it puts out."""
        on_gpu = self._x.device.type == "cuda"
        kept = {} if on_gpu else {"output": pytree.tree_map_only(Tensor, torch.clone, output)}

        def run() -> None:
            output, device, _ = self._run()
            # copies first: an entry of the new state may be a view of another of the old one
            moved = [x.clone() for x in device]
            for buffer, x in zip(self._buffers, moved, strict=True):
                buffer.copy_(x)
            if "output" in kept:
                for there, new in zip(*map(pytree.tree_leaves, (kept["output"], output)), strict=True):
                    if isinstance(there, Tensor):
                        there.copy_(new)
            else:
                kept["output"] = output  # the graph's own memory

        if not on_gpu:
            return _Recorded(run, kept["output"], host)
        torch.cuda.synchronize(self._x.device)
        graph = torch.cuda.CUDAGraph()
        # weights cast by autocast must be cast inside the graph, not be taken from a cache that is emptied later
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):
            try:
                with torch.cuda.graph(graph, pool=self._pool):
                    run()
            except RuntimeError as error:
                raise ValueError(
                    f"The step cannot be recorded as a CUDA graph (it copies from the host, or waits for the device): "
                    f"{error}"
                ) from error
        self._pool = graph.pool()  # graphs are replayed one at a time and share their memory
        return _Recorded(graph.replay, kept["output"], host)

    def _leaves(self, buffers: list[Tensor]) -> list[Any]:
        device, host = iter(buffers), iter(self._host)
        return [next(device) if held else next(host) for held in self._device]


def _held(leaf: Any, device: torch.device) -> bool:
    """Whether a part of the state belongs to its device side. On a CPU, integers and bools are what would stand on the
    host beside a GPU."""
    if not isinstance(leaf, Tensor):
        return False
    return leaf.device.type == device.type and (device.type != "cpu" or leaf.is_floating_point())


def _plain(leaf: Any) -> Any:
    """Something that can be compared."""
    return (tuple(leaf.shape), tuple(leaf.flatten().tolist())) if isinstance(leaf, Tensor) else leaf
