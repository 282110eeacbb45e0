"""Inner models: what the hidden state can be. One per file; name your own in YAML by its import path."""

from ..derivatives import gelu
from ..state import Map, Weights
from .attention import SelfAttention
from .base import Affine, InnerModel, MapShape
from .conv import Conv
from .conv_depthwise import ConvDepthwise
from .dwconv import DWConv
from .glu import GLU
from .linear import Linear
from .mlp import MLP

__all__ = [
    "GLU",
    "MLP",
    "Affine",
    "Conv",
    "ConvDepthwise",
    "DWConv",
    "InnerModel",
    "Linear",
    "Map",
    "MapShape",
    "SelfAttention",
    "Weights",
    "gelu",
]
