"""Evaluation: what a checkpoint does on the videos of a split, measured, reported, and compared."""

from ..measuring import CompareConfig, EvaluateConfig, PositionConfig, PredictConfig
from .compare import compare
from .evaluate import evaluate
from .position import position_sentence, positions
from .report import print_comparison, print_report, write_comparison, write_positions, write_report
from .table import Result

__all__ = [
    "CompareConfig",
    "EvaluateConfig",
    "PositionConfig",
    "PredictConfig",
    "Result",
    "compare",
    "evaluate",
    "position_sentence",
    "positions",
    "print_comparison",
    "print_report",
    "write_comparison",
    "write_positions",
    "write_report",
]
