"""Sequence layers that a TTT layer is compared with, behind the same interface. One per file."""

from ..ttt import TTT, Mixer, SequenceLayer
from .attention import Attention
from .bidirectional import Bidirectional
from .conv_lstm import ConvLSTM
from .frame_attention import FrameAttention
from .gated_delta_net import GatedDeltaNet
from .gru import GRU
from .linear_attention import LinearAttention
from .lstm import LSTM
from .mamba import Mamba
from .none import NoMixer
from .rwkv7 import RWKV7

__all__ = [
    "GRU",
    "LSTM",
    "RWKV7",
    "TTT",
    "Attention",
    "Bidirectional",
    "ConvLSTM",
    "FrameAttention",
    "GatedDeltaNet",
    "LinearAttention",
    "Mamba",
    "Mixer",
    "NoMixer",
    "SequenceLayer",
]
