"""Encoders: frames to tokens. Light ones for training from scratch, and every timm model."""

from .base import Encoder, EncoderState, FrameEncoder
from .features import Features
from .patches import Patches, Tubelets
from .pretrained import Timm
from .stem import ConvStem

__all__ = ["ConvStem", "Encoder", "EncoderState", "Features", "FrameEncoder", "Patches", "Timm", "Tubelets"]
