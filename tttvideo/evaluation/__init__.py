"""Evaluation: the accuracy of a checkpoint at several lengths and sampling rules, its failures named."""

from tttvideo.evaluation.evaluate import Evaluation, evaluate
from tttvideo.evaluation.report import print_report, write_report
from tttvideo.evaluation.settings import parse_all_views, parse_frames, parse_samplings

__all__ = [
    "Evaluation",
    "evaluate",
    "parse_all_views",
    "parse_frames",
    "parse_samplings",
    "print_report",
    "write_report",
]
