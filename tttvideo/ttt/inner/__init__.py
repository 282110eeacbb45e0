"""Inner models: what the hidden state can be. One per file; name your own in YAML by its import path."""

from .base import Affine, InnerModel, Map, MapShape, Weights
from .conv import Conv
from .linear import Linear
from .mlp import MLP

__all__ = ["MLP", "Affine", "Conv", "InnerModel", "Linear", "Map", "MapShape", "Weights"]
