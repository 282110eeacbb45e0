"""Which parameters of a pre-trained net belong to its last blocks, and training those alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def timm_blocks(model: nn.Module, name: str) -> list[list[str]]:
    """Names of parameters: the stem, then block by block, as timm divides the net for layer-wise rates; what follows
    the last block belongs to it.

    Raises:
        ValueError: for a model that timm does not divide.
    """
    from timm.models import group_parameters

    try:
        groups = group_parameters(model, model.group_matcher(coarse=False))  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"timm does not tell the blocks of {name} apart, so that encoder.trainable has no meaning; train all of it "
            "(encoder.frozen: false) or use another model."
        ) from error
    return [groups[number] for number in sorted(groups)]


def listed_blocks(model: nn.Module) -> list[list[str]]:
    """The same of a net whose blocks are the items of its lists (transformers); what follows the last block is left in
    the first item, with the stem: it stays as it is."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [a for a in lists if not any(a.startswith(f"{b}.") for b in lists) and "predictor" not in a]
    names = [name for name, _ in model.named_parameters()]
    blocks = [
        [name for name in names if name.startswith(f"{where}.{number}.")]
        for where in lists
        for number in range(len(model.get_submodule(where)))  # type: ignore[arg-type]
    ]
    inside = {name for block in blocks for name in block}
    return [[name for name in names if name not in inside], *blocks]


def leave_trained(
    model: nn.Module, output: Tensor, count: int, blocks: Callable[[], list[list[str]]], name: str
) -> list[list[str]]:
    """Lets those parameters learn that ``output`` depends on: for the others several processes would wait in vain.

    Args:
        output: of the model, with its graph.
        count: of the last blocks, which alone learn; 0: all learn.
        blocks: as ``timm_blocks`` has them.

    Returns:
        the parameters of those last blocks, first to last.

    Raises:
        ValueError: if there are no so many blocks.
    """
    weights = dict(model.named_parameters())
    gradients = torch.autograd.grad(output.sum(), list(weights.values()), allow_unused=True)
    trained = {key for key, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    last: list[list[str]] = []
    if count:
        used = [block for names in blocks() if (block := [key for key in names if key in trained])]
        if count > len(used) - 1:
            raise ValueError(
                f"encoder.trainable is {count}, and {name} has {len(used) - 1} blocks; lower it, or train all of it "
                "with encoder.frozen: false."
            )
        last = used[len(used) - count :]
        trained = {key for block in last for key in block}
    for key, weight in weights.items():
        weight.requires_grad_(key in trained)
    return last


def trained_modules(model: nn.Module, blocks: Sequence[Sequence[str]], frozen: bool) -> list[nn.Module]:
    """The modules that may be in training mode, with what drops out or counts in them: all, or of a frozen net those
    all of whose parameters are in trained ``blocks``."""
    if not frozen:
        return [model]
    trained = {name for block in blocks for name in block}
    modules = []
    for path, module in model.named_modules():
        names = {f"{path}.{name}" if path else name for name, _ in module.named_parameters()}
        if names and names <= trained:
            modules.append(module)
    return modules


def check_trainable(count: int, frozen: bool) -> None:
    """Raises ValueError for a number of blocks below 0, or one where all blocks are trained."""
    if count < 0:
        raise ValueError(f"encoder.trainable must be 0 (none) or a number of blocks, not {count}.")
    if count and not frozen:
        raise ValueError(
            f"encoder.trainable is {count}, and encoder.frozen: false trains all blocks; leave out one of both."
        )
