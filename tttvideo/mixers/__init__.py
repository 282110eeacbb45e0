"""Sequence layers that a TTT layer is compared with, behind the same interface. One per file."""

from ..ttt import TTT, Mixer, SequenceLayer
from .attention import Attention
from .none import NoMixer

__all__ = ["TTT", "Attention", "Mixer", "NoMixer", "SequenceLayer"]
