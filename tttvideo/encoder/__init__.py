"""Encoders: frames to tokens. Light ones for training from scratch, every timm model, and those of transformers."""

from .base import Encoder, EncoderState, FrameEncoder
from .features import Features
from .hugging_face import Transformers
from .patches import Patches, Tubelets
from .stem import ConvStem
from .timm_models import Timm

__all__ = [
    "ConvStem",
    "Encoder",
    "EncoderState",
    "Features",
    "FrameEncoder",
    "Patches",
    "Timm",
    "Transformers",
    "Tubelets",
]
