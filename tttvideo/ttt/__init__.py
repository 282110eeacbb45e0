"""Layers that learn at test time (arXiv 2407.04620): the hidden state is a model, its update a training step.

Needs PyTorch only; knows neither video nor training.
"""

from .chunk import Chunk, FrameCausal, TokenCausal
from .inner import MLP, Conv, InnerModel, Linear
from .interface import Layout, Mixer, SequenceLayer, detach
from .layer import TTT, TTTLayer, TTTState
from .objective import Objective, ResidualL2

__all__ = [
    "MLP",
    "TTT",
    "Chunk",
    "Conv",
    "FrameCausal",
    "InnerModel",
    "Layout",
    "Linear",
    "Mixer",
    "Objective",
    "ResidualL2",
    "SequenceLayer",
    "TTTLayer",
    "TTTState",
    "TokenCausal",
    "detach",
]
