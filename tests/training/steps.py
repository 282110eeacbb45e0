"""One step of a Trainer on eight clips, divided into batches and over processes in any way: its gradients.

`main`: one of several processes (rank and world size stand in the environment, as torchrun gives them), which steps
through `divided` and saves what it found into a folder.
"""

import os
from pathlib import Path
from signal import SIGINT, SIGTERM, SIGUSR1

import torch
from torch import Tensor

from tttvideo.backbone import Backbone
from tttvideo.encoder import Patches
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.tasks import Classification, Prediction
from tttvideo.training.checkpoint import Progress
from tttvideo.training.config import MixConfig, ScheduleConfig
from tttvideo.training.loop import StepResult, Trainer
from tttvideo.training.mix import ClipMix
from tttvideo.training.optimizer import Schedule
from tttvideo.ttt import TTT
from tttvideo.video.dataset import Failure
from tttvideo.video.loader import Batch
from tttvideo.video.transforms import Preprocessing

SIZE = (8, 16)
LENGTHS = (6, 4, 1, 5, 2, 6, 3, 4)
CONTEXT = 3  # clips of at most so many frames give prediction nothing to learn
LABELS = ["a", "b", "c"]
KINDS = ("one label", "several labels", "prediction", "rollout")
NONE = -1  # in place of a clip: a video that cannot be read

Step = list[list[int]]
"""The clips in each batch of a step."""

DIVIDED: dict[str, dict[int, Step]] = {
    "4 and 4": {0: [[0, 1, 2, 3]], 1: [[4, 5, 6, 7]]},
    "5 and 3": {0: [[0, 1, 2, 3, 4]], 1: [[5, 6, 7]]},
    "all on one": {0: [[NONE, NONE]], 1: [[0, 1, 2, 3, 4, 5, 6, 7]]},
    "5 and 3 in two batches": {0: [[2], [0, 1, 3, 4]], 1: [[NONE, 5, 6], [7]]},
}
DIVIDED_BY_THREE: dict[str, dict[int, Step]] = {
    "3, 3 and 2": {0: [[0, 1, 2]], 1: [[3, 4, 5]], 2: [[6, 7]]},
    "one has none": {0: [[0, 1], [2, NONE]], 1: [[NONE], [NONE]], 2: [[3, 4, 5, 6], [7]]},
}


def divided(kind: str, world: int) -> dict[str, dict[int, Step]]:
    """How the clips are divided over the ranks: in every way for the first kind, in the last way for the others."""
    ways = DIVIDED if world == 2 else DIVIDED_BY_THREE
    return ways if kind == KINDS[0] else dict([list(ways.items())[-1]])


def model_of(kind: str) -> VideoModel:
    """A float64 model for one of `KINDS`, always the same."""
    task = {"prediction": Prediction(context=CONTEXT), "rollout": Prediction(context=CONTEXT, rollout=2)}
    config = ModelConfig(
        encoder=Patches(8),
        backbone=Backbone(width=8, depth=1, mixer=TTT(heads=2)),
        task=task.get(kind, Classification(label_smoothing=0.1)),
    )
    torch.manual_seed(0)
    labels = LABELS if config.task.labelled else []
    several = kind == "several labels"
    model = VideoModel(config, preprocessing=Preprocessing(SIZE), labels=labels, multi_label=several).double()
    for parameter in model.parameters():  # a head that starts at zero gives the rest no gradient
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def batch_of(kind: str, clips: list[int]) -> Batch:
    """Clips by number, padded to the longest; `NONE` is a failure."""
    readable = [i for i in clips if i != NONE]
    lengths = torch.tensor([LENGTHS[i] for i in readable], dtype=torch.int64)
    frames = torch.zeros(len(readable), max([1, *lengths.tolist()]), 3, *SIZE, dtype=torch.uint8)
    for row, i in zip(frames, readable):
        draw = torch.Generator().manual_seed(i)
        row[: LENGTHS[i]] = torch.randint(0, 256, (LENGTHS[i], 3, *SIZE), generator=draw, dtype=torch.uint8)
    labels = torch.tensor([i % 3 for i in readable], dtype=torch.int64)
    if kind == "several labels":
        labels = torch.tensor([[1.0, i % 2, i % 3 == 0] for i in readable]).reshape(-1, 3)
    failures = [Failure(0, "gone.mp4", "cannot be read") for i in clips if i == NONE]
    return Batch(
        frames, lengths, labels, torch.tensor(readable, dtype=torch.int64), ["x"] * len(readable), failures, []
    )


def step(
    kind: str,
    batches: Step,
    *,
    clip_grad: float | None = None,
    signal: int = 0,
    weight_decay: float = 0.0,
    prepare=lambda accelerator: None,
    world: int = 1,
) -> tuple[StepResult, dict[str, Tensor | None], dict[str, Tensor]]:
    """What a step says, the gradients that its optimizer gets, and the weights after it.

    Args:
        prepare: changes the Accelerator before the step.
        world: processes; with several the model is wrapped in DDP.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    model = model_of(kind)
    if kind == "rollout":
        model.head.own_steps = 2
        model.head.set_progress = lambda done: None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=weight_decay)
    gradients: dict[str, Tensor | None] = {}

    def record(*_) -> None:
        gradients.update({n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()})

    optimizer.register_step_pre_hook(record)
    prepare(accelerator)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    trainer = Trainer(
        accelerator,
        wrapped,
        prepared,
        Schedule(optimizer, ScheduleConfig(epochs=1), 1),
        ClipMix(MixConfig(), len(LABELS)),
        accumulate=len(batches),
        clip_grad=clip_grad,
        signal=lambda: signal,
    )
    (result,) = trainer.epoch([batch_of(kind, clips) for clips in batches], len(batches), Progress())
    return result, gradients, {name: p.detach().clone() for name, p in model.named_parameters()}


def main(out: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {}
    for kind in KINDS:
        for name, parts in divided(kind, world).items():
            result, gradients, _ = step(kind, parts[rank], world=world)
            found[f"{kind}, {name}"] = (result.loss, result.grad_norm, len(result.failures), gradients)
    # one of them is sent a signal; and different ones
    asked = [step("one label", [[rank]], signal=sent[rank], world=world)[0].signal for sent in ASKED]
    torch.save({"found": found, "signals": [int(number) for number in asked]}, Path(out) / f"{rank}.pt")


ASKED = [(0, 0, 0), (0, SIGUSR1, 0), (SIGINT, SIGTERM, SIGUSR1)]
