"""What a model is trained for: head, loss and what it outputs, one task per file. Needs PyTorch only."""

from .base import Card, Criterion, Loss, Score, Sizes, Task, TaskHead
from .classification import Classification, ClassificationHead, Output
from .prediction import Forecast, Prediction
from .rollout import roll_out

__all__ = [
    "Card",
    "Classification",
    "ClassificationHead",
    "Criterion",
    "Forecast",
    "Loss",
    "Output",
    "Prediction",
    "Score",
    "Sizes",
    "Task",
    "TaskHead",
    "roll_out",
]
