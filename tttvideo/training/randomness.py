"""Randomness that does not need to be saved: every draw depends on (seed, purpose, position in the run)
alone.

Order, windows and augmentation belong to the loader, which derives them from (seed, epoch, index). What is
left is dropout and Mixup; both are seeded anew before each batch, so nothing that draws from the global
generators in between (iterators, validation, a resumed process) can shift them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

DROPOUT, MIX = 1, 2  # purposes


def derive(seed: int, purpose: int, *position: int) -> int:
    """A 32-bit seed, well mixed even where the inputs are close together."""
    return int(np.random.SeedSequence((seed, purpose, *position)).generate_state(1)[0])


def seed_batch(seed: int, epoch: int, batch: int, rank: int) -> None:
    """Seed torch's global generators (all devices) for the forward pass of one batch."""
    torch.manual_seed(derive(seed, DROPOUT, epoch, batch, rank))


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Run code that draws from numpy's global generator (timm's Mixup) reproducibly, leaving it as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
