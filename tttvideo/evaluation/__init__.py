"""Evaluation: what a checkpoint does on the videos of a split, measured, reported, and compared."""

from tttvideo.evaluation.comparison import compare
from tttvideo.evaluation.comparison_report import print_comparison, write_comparison, write_positions
from tttvideo.evaluation.config import CompareConfig, EvaluateConfig, PositionConfig, PredictConfig
from tttvideo.evaluation.evaluate import Evaluation, evaluate
from tttvideo.evaluation.position_curves import position_sentence, positions
from tttvideo.evaluation.report import print_report, write_report

__all__ = [
    "CompareConfig",
    "EvaluateConfig",
    "Evaluation",
    "PositionConfig",
    "PredictConfig",
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
