"""What a model is trained for: head, loss and what it outputs, one task per file. Needs PyTorch only."""

from .base import Criterion, Loss, Sizes, Task, TaskHead
from .classification import Classification, ClassificationHead, Output
from .prediction import Forecast, Prediction
from .rollout import roll_out

__all__ = [
    "Classification",
    "ClassificationHead",
    "Criterion",
    "Forecast",
    "Loss",
    "Output",
    "Prediction",
    "Sizes",
    "Task",
    "TaskHead",
    "roll_out",
]
