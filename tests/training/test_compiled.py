"""Steps that are compiled or recorded: what they may not do, checked without a GPU; the same curve as without."""

from itertools import pairwise
from traceback import extract_stack

import pytest
import torch
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training import steps
from tests.training.test_run import curve, lines
from tttvideo.training import compiled, segments
from tttvideo.training.loop import Trainer
from tttvideo.training.run import main


class Copies(TorchDispatchMode):
    """Records what is copied from the host to the device, here "meta", whose tensors have no values: to read one (to
    make a number, a bool or a shape of it) is an error by itself."""

    def __init__(self):
        super().__init__()
        self.waiting: list[str] = []
        self.others = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        outputs = function(*args, **kwargs)
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_device = any(x.is_meta for x in pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor))
        if on_device and any(not x.is_meta and x.dim() for x in tensors):
            if kwargs.get("non_blocking"):
                self.others += 1
            else:
                inside = [at for at in extract_stack() if "/tttvideo/" in at.filename]
                self.waiting.append(f"{function}, {inside[-1:]}")
        return outputs


class Literals(TorchFunctionMode):
    """Refuses tensors that are made of Python's numbers on the device: a copy that the host waits for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        tensor = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            assert not tensor.is_meta, f"{function.__name__} copies {args} to the device"
        return tensor


@pytest.fixture
def on_meta(monkeypatch):
    """Steps of ``steps.step`` on the device "meta". Their one reading is answered with ones, and counted."""
    readings = []

    def tolist(x):
        if not x.is_meta:
            return plain(x)
        readings.append(x.numel())
        sums = [1.0] * len(Trainer._columns.fget(trainers[-1]))
        sums[-1] = sums[-2] = 0.0  # nothing that is not finite, nothing that failed
        return sums + [0.0] * (x.numel() - 1 - len(sums)) + [1.0]

    class Watched(Trainer):
        def __init__(self, *parts, **settings):
            super().__init__(*parts, **settings)
            trainers.append(self)

        def _step(self, *arguments):
            with Literals(), copies:
                return super()._step(*arguments)

    copies = Copies()
    plain, build, trainers, autocast = torch.Tensor.tolist, steps.model_of, [], torch.autocast
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    monkeypatch.setattr(steps, "Trainer", Watched)
    monkeypatch.setattr(steps, "model_of", lambda kind: build(kind).to("meta"))
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("meta")))
    # torch.autocast knows no "meta"
    on_cpu = lambda kind, *args, **settings: autocast("cpu" if kind == "meta" else kind, *args, **settings)  # noqa: E731
    monkeypatch.setattr(torch, "autocast", on_cpu)
    return readings, copies


@pytest.mark.parametrize("kind", steps.KINDS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole clips", "padded clips"])
def test_a_step_reads_from_the_device_once(kind, whole, on_meta):
    """Forward and backward pass, mean, clipping, optimizer."""
    clips = [0, 5] if whole else [0, 1]
    readings, copies = on_meta
    steps.step(kind, [clips], clip_grad=1.0, weight_decay=0.1)
    assert len(readings) == 1
    assert copies.waiting == []
    if whole and kind != "rollout":  # only the batch itself: the rest can be recorded in a CUDA graph
        assert copies.others <= 2


def rerun(passes):
    """Stands in for ``compiled.record``: a CPU has no graphs. Static tensors are written anew by each replay."""
    with torch.random.fork_rng():
        written = passes()

    def replay():
        for static, tensor in zip(written, passes(), strict=True):
            if static is not None:
                static.copy_(tensor)

    return replay, written


def test_recorded_passes_are_those_of_a_plain_run(arguments, tmp_path, monkeypatch):
    """To the last bit, with accumulation, dropout, Mixup and a last batch of another size."""
    settings = {"data.sampling": "uniform=4", "data.batch_size": 4, "schedule.inner_warmup": 0.25, "schedule.epochs": 3}
    assert main(arguments(out="plain", **settings)) == 0
    replayed = []

    def record(passes):
        replay, written = rerun(passes)
        return lambda: (replayed.append(len(written)), replay()), written

    monkeypatch.setattr(segments, "check_graph", lambda accelerator, checkpointing: None)
    monkeypatch.setattr(compiled, "record", record)
    assert main(arguments(out="graph", **settings | {"training.compile": "graph"})) == 0
    assert len(replayed) >= 4
    assert curve(tmp_path / "graph") == curve(tmp_path / "plain")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--training.compile", "graph"], "CUDA graphs are recorded on a GPU, and this run is on cpu; set modules or"),
        (["--training.compile", "modules", "--training.segment_frames", "2"], "serves whole clips"),
        (["--training.compile", "graph", "--activation_checkpointing", "2"], "computes again in the backward"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(words, why, arguments, tmp_path, capsys):
    given = arguments() if "--training.segment_frames" not in words else arguments(mix__mixup=0, mix__cutmix=0)
    assert main([*given, *words]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*.jsonl"))


@pytest.mark.slow
def test_a_run_of_compiled_modules_is_the_run(arguments, tmp_path, monkeypatch):
    """The same curve; of changing lengths the first ones are compiled, and validation is not."""
    build = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: build(self, backend="aot_eager", **how))
    monkeypatch.setattr(compiled, "KINDS", 2)
    settings = {"data.batch_size": 1, "data.max_frames": 7, "mix.cutmix": 0, "mix.mixup": 0, "schedule.epochs": 1}
    settings |= {"accumulate": 1, "schedule.inner_warmup": 0, "model.backbone.dropout": 0}
    assert main(arguments(out="plain", **settings)) == 0
    torch._dynamo.reset()
    graphs = []
    read = compiled.CompiledTrainer._read

    def counted(self, frames, lengths):
        output = read(self, frames, lengths)
        graphs.append((frames.shape[1], torch._dynamo.utils.counters["stats"]["unique_graphs"]))
        return output

    monkeypatch.setattr(compiled.CompiledTrainer, "_read", counted)
    runs = ("plain", "compiled")
    assert main(arguments(out="compiled", **settings | {"training.compile": "modules"})) == 0
    lengths = list(dict.fromkeys(length for length, _ in graphs))
    assert len(lengths) > 2
    assert graphs[0][1] > 0
    for (_, before), (length, after) in pairwise(graphs):
        assert after == before or length in lengths[:2]
    rows = ([(row["loss"], row["grad_norm"]) for row in lines(tmp_path / name / "steps.jsonl")] for name in runs)
    torch.testing.assert_close(*map(torch.tensor, rows), rtol=1e-4, atol=1e-6)
