"""What ``torch.compile`` leaves alone; imported while something is compiled, as the compiler takes longer to import
than all else here.
"""

import torch

from .kernels import choice
from .scan import scan as eager_scan

scan = torch.compiler.disable(eager_scan, recursive=False)
"""Its loop depends on lengths; a chunk is a graph of its own, compiled once."""

torch.compiler.assume_constant_result(choice.not_trusted)
