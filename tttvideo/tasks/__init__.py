"""What a model is trained for: head, loss and what it outputs, one task per file. Needs PyTorch only."""

from .base import Sizes, Task, TaskHead
from .classification import Classification, Output

__all__ = ["Classification", "Output", "Sizes", "Task", "TaskHead"]
