"""The commands that use a model on videos: classify, predict, stream, serve, inspect."""

from __future__ import annotations

from ..inspection.config import InspectConfig
from ..measuring import PredictConfig
from .config import ClassifyConfig, ServeConfig, StreamConfig


def classify(config: ClassifyConfig) -> int:
    from .files import classify_files

    return classify_files(config)


def predict(config: PredictConfig) -> int:
    from .predict import predict_files

    return predict_files(config)


def stream(config: StreamConfig) -> int:
    from .watch import watch

    return watch(config)


def serve(config: ServeConfig) -> int:
    from .serve import serve

    return serve(config)


def inspect(config: InspectConfig) -> int:
    from ..inspection.report import inspect

    return inspect(config)
