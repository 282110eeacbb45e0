"""Export: a checkpoint as a folder for others (``folder``), and as one streaming step for other runtimes (``step``)."""

from typing import Any

__all__ = ["EXPORTED", "ExportError", "export"]


def __getattr__(name: str) -> Any:
    # Deferred, so that the command line reads its options before torch is imported.
    if name in __all__:
        from . import folder

        return getattr(folder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
