"""Arrays, tensors and PIL pictures of any size, converted to frames for a model's preprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..encoder.base import check_range


def as_frames(pictures: Any) -> Tensor:
    """uint8 [F, 3, h, w] of one picture or several.

    Args:
        pictures: a PIL image; a numpy array [h, w, 3] (as cameras and PIL give them) or a tensor [3, h, w] (as PyTorch
            has them), with a first axis of frames or without; or a list of these. Grey pictures have one channel, or
            no axis of channels in an array [h, w]. Values are uint8, or floating point in 0..1, which are rounded to
            8 bits. An array in the other order is recognised where its shape leaves no doubt.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(pictures, (list, tuple)):
        if not pictures:
            raise ValueError("Expected frames, got an empty list; give at least one.")
        frames = [as_frames(picture) for picture in pictures]
        if len({frame.shape[1:] for frame in frames}) > 1:
            raise ValueError("Expected frames of one size in a list, got several; give them one by one.")
        return torch.cat(frames)
    if hasattr(pictures, "convert") and hasattr(pictures, "getbands"):  # PIL, which is not imported for this
        return torch.from_numpy(np.array(pictures.convert("RGB"))).permute(2, 0, 1)[None]
    channels_last = isinstance(pictures, np.ndarray)
    if isinstance(pictures, np.ndarray):
        if pictures.dtype.kind not in "fu" or pictures.dtype in (np.uint16, np.uint32, np.uint64):
            raise ValueError(f"Expected frames of uint8, or of floating point in 0..1, got {pictures.dtype}; convert.")
        pictures = torch.from_numpy(np.require(pictures, requirements="CWE"))  # of a pipe they are read-only
    if not isinstance(pictures, Tensor):
        raise ValueError(f"Expected frames (numpy, torch or PIL), got a {type(pictures).__name__}; convert them.")
    x = pictures.detach().to_dense()
    if x.dim() == 2 and channels_last:
        x = x[..., None]
    if x.dim() not in (3, 4) or not x.numel():
        raise ValueError(
            f"Expected a picture or a clip ([h, w, 3] in numpy, [3, h, w] in torch, a clip has one axis more), got "
            f"{list(pictures.shape)}; a batch of videos is given as a list of clips."
        )
    x = x[None] if x.dim() == 3 else x
    first, last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
    if not first and not last:
        raise ValueError(f"Expected 1 or 3 colour channels, got {list(pictures.shape)}; drop the others (alpha, say).")
    x = x.permute(0, 3, 1, 2) if last and (channels_last or not first) else x
    check_range(x[None], None)
    if x.is_floating_point():
        x = x.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1)
