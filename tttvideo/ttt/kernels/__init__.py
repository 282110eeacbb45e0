"""Triton kernels behind the same call as the eager scan, ``read``, and around it: ``split`` and ``norm_and_gate``.
README.md derives and measures them.

Nothing here imports Triton before a kernel is launched: it exists on Linux only.
"""

from .choice import mode_of, use_kernels
from .heads import split
from .output import norm_and_gate
from .read import read

__all__ = ["mode_of", "norm_and_gate", "read", "split", "use_kernels"]
