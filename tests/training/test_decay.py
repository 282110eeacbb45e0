"""Who is exempt from weight decay: parameters that say so themselves, and vectors; whatever their names."""

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from tests.helpers import ALL_ENCODERS, ALL_MIXERS, each_kind, name, video_model
from tttvideo.encoder import Timm
from tttvideo.model import VideoModel
from tttvideo.tasks import Classification, Prediction
from tttvideo.training.config import OptimizerConfig
from tttvideo.training.optimizer import build_optimizer
from tttvideo.ttt.interface import Layout, Mixer, SequenceLayer

# Substrings of names that used to decide (commit be1bc61). The classes of then name their parameters by them, so
# they are the record of what was exempt; they must not decide again.
OF_MIXERS = (
    ".weights.",
    ".biases.",
    ".rate.",
    ".norm_",
    ".scale_shift",
    ".forget.",
    ".alpha",
    ".A_log",
    ".dt_bias",
    ".D",
)
SINCE = (".momentum.", ".right.")
"""Of options that are younger: a learned share of momentum goes as the rate, factors of W_0 as W_0."""


build = partial(video_model, size=(32, 64), width=8, depth=1)


def exempt(model: nn.Module) -> set[str]:
    """Names of the parameters that the optimizer does not decay."""
    optimizer = build_optimizer(model, OptimizerConfig(weight_decay=0.1))
    free = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    return {key for key, p in model.named_parameters() if id(p) in free}


def exempt_before(model: VideoModel) -> set[str]:
    named = {
        key
        for key, _ in model.named_parameters()
        if "position" in key or (".mixer." in key and any(part in key for part in OF_MIXERS + SINCE))
    }
    if isinstance(model.config.encoder, Timm):
        named |= {f"encoder.model.{key}" for key in getattr(model.encoder.model, "no_weight_decay", set)()}
    learned = {key: p for key, p in model.named_parameters() if p.requires_grad}
    vectors = {key for key, p in learned.items() if p.ndim <= 1 or key.endswith(".bias")}  # timm's own rule
    return vectors | (named & learned.keys())


OLDER_MIXERS = [mixer for mixer in ALL_MIXERS if "RWKV7" not in name(mixer)]


@pytest.mark.parametrize("mixer", each_kind(OLDER_MIXERS), ids=name)
def test_shipped_mixers_decay_what_they_did(mixer):
    model = build(mixer=mixer)
    assert exempt(model) == exempt_before(model)


@pytest.mark.parametrize(
    "encoder",
    [*ALL_ENCODERS, Timm("swin_tiny_patch4_window7_224", pretrained="false", grid=(1, 1), frozen=False)],
    ids=name,
)
def test_shipped_encoders_decay_what_they_did(encoder):
    model = build(encoder=encoder)
    assert exempt(model) == exempt_before(model)
    assert "encoder.position" in exempt(model)


@pytest.mark.parametrize(
    "task", [Classification(pooling="attention"), Prediction(), Prediction(space="features")], ids=name
)
def test_shipped_tasks_decay_what_they_did(task):
    model = build(encoder=Timm("test_resnet", pretrained="false", grid=(1, 1)), task=task)
    assert exempt(model) == exempt_before(model)


class OwnLayer(SequenceLayer):
    """A user's, with names that used to lose their decay, and a parameter that marks itself."""

    def __init__(self, dim: int):
        super().__init__()
        self.Dense = nn.Linear(dim, dim)
        self.Down = nn.Linear(dim, dim)
        self.decomposition = nn.Linear(dim, dim)
        self.rate = nn.Linear(dim, dim)
        self.norm_x = nn.Linear(dim, dim)
        self.alpha_x = nn.Linear(dim, dim)
        self.start = nn.Parameter(torch.zeros(dim, dim))
        self.start._no_weight_decay = True  # as mamba_ssm does it
        self.inside = Named(dim)

    def unit(self, tokens_per_frame: int) -> int:
        return 1

    def init_state(self, batch: int) -> tuple:
        return ()

    def read(self, x, state, layout: Layout):
        return x, state


class Named(nn.Module):
    """Another's module that names what is exempt, as timm's do."""

    def __init__(self, dim: int):
        super().__init__()
        self.table, self.weight = (nn.Parameter(torch.zeros(dim, dim)) for _ in range(2))

    def no_weight_decay(self) -> set[str]:
        return {"table"}


@dataclass(frozen=True)
class Own(Mixer):
    def build(self, dim: int) -> SequenceLayer:
        return OwnLayer(dim)


def test_a_users_layer_is_not_judged_by_its_names():
    at = "backbone.blocks.0.mixer."
    model = build(mixer=Own())
    matrices = {key.removeprefix(at) for key in exempt(model) if key.startswith(at) and not key.endswith("bias")}
    assert matrices == {"start", "inside.table"}
    # a copied parameter has lost its mark, but the model of it remembers
    assert exempt(copy.deepcopy(model)) == exempt(model)
    model.backbone.late = nn.Linear(8, 8)
    model.backbone.late.weight._no_weight_decay = True
    assert "backbone.late.weight" in exempt(model)
