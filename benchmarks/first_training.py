"""A training that needs neither video files, nor a reader of them, nor a configuration."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tttvideo.backbone import Backbone
from tttvideo.encoder import Patches
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.ttt import MLP, TTT, FrameCausal, Linear, TokenCausal
from tttvideo.video.transforms import Preprocessing

COLOURS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
ORDERS = [(first, second) for first in range(3) for second in range(3) if first != second]


def clips(count: int, frames: int, size: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """flash-order in a few lines: squares of two colours flash in noise, one after the other, two frames each. Which
    came first? [B, F, 3, size, size] in 0..1, and the number of the order [B]."""
    videos = 0.5 + 0.1 * torch.randn(count, frames, 3, size, size, generator=draw)
    labels = torch.randint(len(ORDERS), (count,), generator=draw)
    side = 5 * size // 8
    for video, label in zip(videos, labels.tolist(), strict=True):
        first, second = (2 * torch.randperm(frames // 2, generator=draw)[:2]).sort().values.tolist()
        for start, colour in zip((first, second), ORDERS[label], strict=True):
            y, x = torch.randint(size - side + 1, (2,), generator=draw).tolist()
            video[start : start + 2, :, y : y + side, x : x + side] = COLOURS[colour][:, None, None]
    return videos.clamp(0, 1), labels


def model_of(fused: str, device: torch.device, tiny: bool) -> tuple[VideoModel, int, int, int]:
    """A classifier with token-causal and frame-causal TTT-MLP, always the same; frames and size of its clips, and clips
    of a batch."""
    frames, size, width, batch = (4, 16, 16, 2) if tiny else (24, 32, 64, 16)
    heads = max(1, width // 32)
    inner = Linear() if tiny else MLP()
    blocks = [TTT(inner, heads, chunk, fused=fused) for chunk in (TokenCausal(16), FrameCausal())]  # type: ignore[arg-type]
    config = ModelConfig(Patches(patch=8), Backbone(width=width, depth=2, pattern=blocks))
    torch.manual_seed(0)
    names = [str(order) for order in ORDERS]
    model = VideoModel(config, preprocessing=Preprocessing(size=(size, size)), labels=names).to(device)
    return model, frames, size, batch


def curve(fused: str, device: torch.device, steps: int, tiny: bool = False) -> Iterator[float]:
    """The loss of every step, in bfloat16, of fresh clips each. The same clips and the same start on every device,
    whatever ``fused`` (see ``TTT``)."""
    model, frames, size, batch = model_of(fused, device, tiny)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20)
        videos, labels = clips(batch, frames, size, draw)
        with torch.autocast(device.type, torch.bfloat16):
            output, _ = model(videos.to(device))
            loss = model.loss(output, labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield float(loss.detach())
