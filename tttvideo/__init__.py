"""tttvideo: learns from long videos, every frame, with hidden states that are models trained at test time."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .inference.classify import pipeline
    from .inspection.recording import inner_loss
    from .model import ModelConfig, VideoModel
    from .pretrained import from_pretrained

__all__ = ["ModelConfig", "VideoModel", "__version__", "from_pretrained", "inner_loss", "pipeline"]


_MODULES = {
    "ModelConfig": ".model",
    "VideoModel": ".model",
    "from_pretrained": ".pretrained",
    "inner_loss": ".inspection.recording",
    "pipeline": ".inference.classify",
}


def __getattr__(name: str) -> Any:
    # Deferred, so that `import tttvideo` stays cheap and `tttvideo.ttt` can be used without video or timm.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name], __name__), name)
    from .synonyms import PACKAGE, advice

    raise AttributeError(f"module 'tttvideo' has no attribute {name!r}{advice(name, PACKAGE)}")


def __dir__() -> list[str]:
    return sorted(__all__)
