"""Layers that learn at test time (arXiv 2407.04620): the hidden state is a model, its update a training step.

Needs PyTorch only; knows neither video nor training.
"""

from .chunk import Chunk, FrameCausal, TokenCausal, Whole
from .config import TTT
from .inner import GLU, MLP, Conv, ConvDepthwise, DWConv, InnerModel, Linear, SelfAttention
from .interface import Layout, Mixer, SequenceLayer, detach, state_from, state_tensors
from .layer import TTTLayer
from .learning import Learning
from .objective import L2, DotProduct, Objective, ResidualL2
from .optimizer import SGD, Adam, InnerOptimizer, Momentum, Muon
from .state import TTTState
from .streaming import Stream

__all__ = [
    "GLU",
    "L2",
    "MLP",
    "SGD",
    "TTT",
    "Adam",
    "Chunk",
    "Conv",
    "ConvDepthwise",
    "DWConv",
    "DotProduct",
    "FrameCausal",
    "InnerModel",
    "InnerOptimizer",
    "Layout",
    "Learning",
    "Linear",
    "Mixer",
    "Momentum",
    "Muon",
    "Objective",
    "ResidualL2",
    "SelfAttention",
    "SequenceLayer",
    "Stream",
    "TTTLayer",
    "TTTState",
    "TokenCausal",
    "Whole",
    "detach",
    "state_from",
    "state_tensors",
]
