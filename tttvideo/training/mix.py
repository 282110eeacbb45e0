"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) for clips, by timm.

A clip is mixed with its mirror in the batch (first with last, and so on), the same way in all its frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import MixConfig
from .randomness import numpy_seeded


class ClipMix:
    """Callable `(frames, lengths, labels, seed) -> (frames, lengths, labels)`; see `__call__`."""

    def __init__(self, config: MixConfig, n_classes: int):
        self.config = config
        self.n_classes = n_classes

    @property
    def active(self) -> bool:
        return (self.config.mixup > 0 or self.config.cutmix > 0) and self.config.probability > 0

    def __call__(self, frames: Tensor, lengths: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mix one batch.

        Args:
            frames: uint8 [B, F, 3, H, W], or features [B, F, C, H, W].
            lengths: int64 [B], valid frames of each clip.
            labels: int64 [B], or float [B, n_classes] for multi-label.
            seed: decides everything that is drawn.

        Returns:
            frames float32, those of uint8 in 0..1; lengths [B], where a mixed clip is as long as the longer
                of its sources (the shorter one has turned black by then); labels float32 [B, n_classes].
                With B odd the middle of the batch stays as it is; so does a batch of one.
        """
        from timm.data.mixup import Mixup

        B, n_frames, C, H, W = frames.shape
        mixed = frames.float() / (255 if frames.dtype == torch.uint8 else 1)
        targets = labels if labels.dim() == 2 else F.one_hot(labels, self.n_classes)
        targets = targets.float()
        if B < 2:
            return mixed, lengths, targets

        # timm wants an even batch: leave the middle clip out of an odd one, which keeps the pairs of the
        # others.
        rows = torch.cat([torch.arange(B // 2), torch.arange(B // 2 + B % 2, B)])
        on_device = rows.to(frames.device, non_blocking=True)
        # Rows stand in for classes, so timm's soft "targets" are the mixing weights [rows, rows] themselves:
        # they serve single and multiple labels alike and say which rows were mixed.
        mix = Mixup(
            mixup_alpha=self.config.mixup,
            cutmix_alpha=self.config.cutmix,
            prob=self.config.probability,
            switch_prob=self.config.switch,
            label_smoothing=0.0,  # the task smooths
            num_classes=len(rows),
        )
        # timm slices dimensions 2 and 3: fold the frames into the channels.
        flat = mixed[on_device].reshape(len(rows), n_frames * C, H, W)
        with numpy_seeded(seed):
            flat, weights = mix(flat, torch.arange(len(rows)))  # on the host, which nothing has to wait for
        weights = weights.float()

        mixed[on_device] = flat.view(len(rows), n_frames, C, H, W)
        targets[on_device] = weights.to(targets.device, non_blocking=True) @ targets[on_device]
        was_mixed = weights.diagonal() < 1
        own, other = lengths[rows], lengths[rows].flip(0)
        lengths = lengths.clone()
        lengths[rows] = torch.where(was_mixed, torch.maximum(own, other), own)
        return mixed, lengths, targets
