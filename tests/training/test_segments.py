"""Films of any length in segments: the state is carried, nothing of a film is lost, and a run stops anywhere."""

import json
from collections import defaultdict
from itertools import islice

import numpy as np
import pytest
import torch

from tests.training.test_cached_features import losses
from tttvideo.backbone import Backbone
from tttvideo.encoder import Features
from tttvideo.mixers import GRU, TTT, Attention, GatedDeltaNet
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.training.config import TrainingConfig
from tttvideo.training.run import main
from tttvideo.training.segments import FilmTrainer, SegmentSampler, SegmentTrainer, start_parameters
from tttvideo.ttt.chunk import FrameCausal
from tttvideo.video.dataset import DataConfig, longest
from tttvideo.video.loader import SegmentBatch
from tttvideo.video.transforms import Preprocessing

MIXERS = [
    TTT(heads=2, chunk=FrameCausal(frames=2)),
    TTT(heads=2, short_conv="raster"),
    Attention(heads=2, window=3),
    GRU(),
    GatedDeltaNet(heads=2),
]


def sampler(lengths, rows=2, world=1, rank=0, segment=8, unit=2, most=None):
    how = {"rows": rows, "segment": segment, "unit": unit, "seed": 3, "rank": rank, "world": world}
    return SegmentSampler(lengths, lambda _: most, **how)


def steps(sampled, epochs=3):
    found = []
    for epoch in range(epochs):
        sampled.start_at(epoch)
        found += list(sampled)
    return found


def test_every_frame_of_every_film_is_read_once_in_a_pass():
    lengths = [5, 40, 8, 1, 17, 33, 0]
    films = defaultdict(list)
    for parts in islice(sampler(lengths)._all(), 100):
        for part in parts:
            films[part.epoch, part.index].append(part)
    for number in range(3):
        for index, length in enumerate(lengths):
            parts = films[number, index]
            assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
            assert parts[-1].start < max(length, 1) <= parts[-1].stop
            assert all(part.stop % 2 == 0 for part in parts)
            assert all(part.stop - part.start <= 8 for part in parts)
    assert len({films[number, 1][0].stop for number in range(6)}) > 1  # a random first offset


def test_processes_share_the_rows_and_a_restart_goes_on(monkeypatch):
    lengths = [5, 40, 8, 1, 17, 33]
    whole = steps(sampler(lengths, rows=4))
    halves = [steps(sampler(lengths, world=2, rank=rank)) for rank in range(2)]
    assert whole == [[*a, *b] for a, b in zip(*halves)]
    again = sampler(lengths, rows=4)
    again.start_at(1, 2)
    assert list(again) == whole[len(again) + 2 : 2 * len(again)]
    assert 0 <= sampler(lengths).padding() < 0.5


def build(mixer, classes=3, dtype=torch.float64):
    torch.manual_seed(0)
    config = ModelConfig(Features(channels=4), Backbone(width=8, depth=2, mixer=mixer, mlp_ratio=1.0, pre_conv=True))
    model = VideoModel(config, preprocessing=Preprocessing(), labels=list("abc")[:classes]).to(dtype)
    for layer in model.modules():
        if hasattr(layer, "base_rate"):
            layer.inner_rate_scale = 1.0
    return model


class OneProcess:
    """As much of accelerate's as a step needs."""

    device, num_processes, process_index, scaler = torch.device("cpu"), 1, 0, None

    def unwrap_model(self, model):
        return model


def trainer(model, kind=SegmentTrainer, **settings):
    how = {"training": TrainingConfig(4, **settings), "rank": 0} if kind is SegmentTrainer else settings
    return kind(OneProcess(), model, None, None, None, **how)


def batch(frames, films, labels=(0, 1)):
    lengths = torch.tensor([len(f) for f in frames])
    padded = torch.zeros(len(frames), max(1, int(lengths.max())), 4, 1, 1, dtype=torch.float64)
    for row, f in zip(padded, frames):
        row[: len(f)] = f
    return SegmentBatch(padded, lengths, torch.tensor(labels), torch.tensor(films), [], [], [])


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda m: type(m).__name__)
def test_carried_states_are_those_of_the_whole_film(mixer):
    """Row 0: a film of 10 frames, then another; row 1: one of 12. Backbone and head see what a whole pass sees."""
    model = build(mixer).eval()
    a, b, c = (torch.randn(n, 4, 1, 1, dtype=torch.float64) for n in (10, 6, 12))
    own = trainer(model)
    outputs = []
    model.register_forward_hook(lambda *call: outputs.append(call[-1][1].backbone))
    for rows, films in (
        ([a[:4], c[:4]], [[0, 0], [0, 2]]),
        ([a[4:8], c[4:8]], [[0, 0], [0, 2]]),
        ([a[8:], c[8:]], [[0, 0], [0, 2]]),
        ([b[:4], c[:0]], [[0, 1], [0, 2]]),
    ):
        own._forward(batch(rows, films), 0, 0)
    with torch.no_grad():
        for film, segment, row in ((a, 2, 0), (c, 2, 1), (b[:4], 3, 0)):
            expected = model(film[None])[1].backbone
            for found, wanted in zip(leaves(outputs[segment]), leaves(expected)):
                tail = found[row : row + 1]
                if found.dtype == torch.int64:
                    continue  # places in caches, which padding moves
                if tail.shape != wanted.shape:  # a cache in which other rows remember more
                    tail = tail[:, :, -wanted.shape[2] :] if tail.dim() == 4 else tail[:, -wanted.shape[1] :]
                assert (tail - wanted).abs().max() < 1e-10


def leaves(state):
    return [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor) and leaf.numel()]


def test_w_0_is_in_every_step_and_values_do_not_depend_on_its_gradient():
    films = [torch.randn(8, 4, 1, 1, dtype=torch.float64) for _ in range(2)]
    totals, norms = defaultdict(list), defaultdict(list)
    for way in ("stop", "straight"):
        model = build(MIXERS[0])
        own, names = trainer(model, start_gradient=way), start_parameters(model)
        assert names
        assert all("mixer" in name for name in names)
        for start in (0, 4):
            model.zero_grad()
            total, _ = own._forward(batch([f[start : start + 4] for f in films], [[0, 0], [0, 1]]), 0, 0)
            total.backward()
            totals[way].append(float(total.detach()))
            gradients = [p.grad for name, p in model.named_parameters() if name in names]
            assert all(g is not None for g in gradients)
            norms[way].append(float(torch.stack([g.norm() for g in gradients]).norm()))
    assert totals["stop"] == pytest.approx(totals["straight"], rel=1e-12)
    assert norms["stop"][0] == norms["straight"][0] > 0
    assert norms["stop"][1] == 0 < norms["straight"][1]


def test_no_detaching_gives_the_gradient_of_the_whole_film():
    torch.manual_seed(1)
    frames = torch.randn(2, 11, 4, 1, 1, dtype=torch.float64)
    lengths, labels = torch.tensor([11, 6]), torch.tensor([0, 2])
    gradients = []
    for segment in (None, 4):
        model = build(MIXERS[0])
        own = trainer(model, FilmTrainer, segment=segment or 100)
        loss = model.summed_loss(own._read(frames, lengths), labels)
        loss.total.backward()
        gradients.append([p.grad for p in model.parameters()])
    for whole, parts in zip(*gradients):
        assert (whole - parts).abs().max() < 1e-12 * (1 + whole.abs().max())


def test_a_schedule_of_lengths_rises():
    schedule = DataConfig(length_schedule=((0, 4), (2, 9))).length_schedule
    assert [longest(schedule, 7, epoch) for epoch in range(4)] == [4, 4, 7, 7]
    assert [longest(schedule, None, epoch) for epoch in (1, 2)] == [4, 9]
    assert longest((), None, 5) is None
    with pytest.raises(ValueError, match="epochs rising from 0"):
        DataConfig(length_schedule=((3, 4), (2, 9)))


@pytest.fixture
def words(arguments, tmp_path):
    """Arguments of a short run over files of features, of 3 to 40 time steps, in segments."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for name, level in (("a", -1.0), ("b", 1.0)):
            for i in range(count):
                file = tmp_path / "films" / split / name / f"{name}{i}.npy"
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, (level + generator.normal(size=(3 + 7 * i, 6))).astype(np.float32))

    def build(*extra, out="run", **settings):
        values = {
            "model.encoder": "Features",
            "data.root": tmp_path / "films",
            "data.max_frames": "null",
            "training.segment_frames": 8,
            "mix.mixup": 0.0,
            "mix.cutmix": 0.0,
            "data.augment.flip": 0.0,
            "data.augment.brightness": 0.0,
            **settings,
        }
        found = arguments(out=out)
        del found[found.index("--model.encoder.patch") : found.index("--model.encoder.patch") + 2]
        return [*found, *(word for key, value in values.items() for word in (f"--{key}", str(value))), *extra]

    return build


def test_a_run_stopped_inside_a_film_goes_on_as_if_nothing_had_been(words, tmp_path, capfd, monkeypatch):
    given = {"checkpoint.every": 2, "accumulate": 1, "training.restart": 0.2, "checkpoint.keep": 99}
    assert main(words(**given)) == 0
    said = capfd.readouterr().out
    assert "segments of 8 frames, 2 films side by side" in said
    assert "padding" in said
    whole = losses(tmp_path / "run")
    for checkpoint in ("step-00000004", "step-00000008"):
        assert main(words("--resume", checkpoint, **given)) == 0
        assert losses(tmp_path / "run") == whole


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mix.mixup": 0.5}, "mix mixes clips"),
        ({"data.augment.speed": "[0.5,2]"}, "data.augment.speed changes how long a film is"),
        ({"data.sampling": "segments=4"}, "draws frames anew each time"),
        ({"data.buckets": 2}, "data.buckets does not go with"),
        ({"training.segment_frames": "null", "training.restart": 0.5}, "they need segment_frames and detach"),
        ({"training.segment_frames": "null", "training.detach_every": 0}, "set training.segment_frames too"),
        ({"training.detach_every": 3}, "must be 1 (each segment) or 0"),
        ({"training.detach_every": 0, "training.restart": 0.5}, "and detach_every: 1"),
        ({"training.detach_every": 0, "training.start_gradient": "straight"}, "and detach_every: 1"),
        ({"model.backbone.mixer": "Attention"}, "set model.backbone.mixer.window"),
        ({"model.backbone.mixer": "Bidirectional"}, "reads videos whole"),
    ],
)
def test_what_does_not_go_with_segments_is_refused(words, settings, sentence, capfd):
    assert main(words(**settings)) == 2
    assert sentence in capfd.readouterr().err


@pytest.mark.slow
def test_a_film_in_one_step_and_a_length_schedule_run(words, tmp_path):
    assert main(words(out="film", **{"training.detach_every": 0})) == 0
    assert main(words(out="grows", **{"data.length_schedule": "[[0,4],[1,20]]"})) == 0
    assert json.loads((tmp_path / "grows" / "log.jsonl").read_text().splitlines()[0])["train_loss"] > 0
