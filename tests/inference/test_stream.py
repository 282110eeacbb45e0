"""A stream's answers are those of one call over everything, whatever way its frames come."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tests.evaluation.small import small_model
from tests.evaluation.test_forecasting import predictor
from tttvideo.inference.forgetting import Cuts, Decay, Every, parse_forgetting
from tttvideo.inference.stream import as_row, grows
from tttvideo.mixers import TTT, Attention, Bidirectional, LinearAttention
from tttvideo.ttt import FrameCausal, TokenCausal


def clip(count, height=40, width=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def whole(model, frames):
    with torch.no_grad():
        output, _ = model(model.preprocessing.apply(frames)[None])
    return model.probabilities(output.timeline[0])


@pytest.mark.parametrize("mixer", [TTT(), TTT(chunk=TokenCausal(16)), TTT(chunk=FrameCausal(2)), LinearAttention()])
def test_answers_equal_the_whole_pass(mixer):
    model, frames = small_model(mixer=mixer, tubelets=True), clip(11)
    stream = model.stream(rate=10)
    assert stream.unit == model.frame_multiple
    moments = [moment for frame in frames for moment in stream(frame)] + stream.finish()
    expected = whole(model, frames)
    assert [moment.frame for moment in moments] == [*range(stream.unit, 11, stream.unit), 11]
    assert [moment.time for moment in moments] == pytest.approx([(m.frame - 1) / 10 for m in moments])
    for moment in moments:
        step = -(-moment.frame // model.encoder.stride) - 1
        torch.testing.assert_close(moment.probabilities, expected[step], rtol=0, atol=1e-5)
    at_once = model.stream()
    torch.testing.assert_close(at_once(frames[:10])[-1].probabilities, moments[-2].probabilities, rtol=0, atol=1e-5)


def test_frames_of_any_kind_and_size_and_times():
    model, frames = small_model(), clip(4)
    answers = []
    array = frames.permute(0, 2, 3, 1).numpy()
    kinds = (
        list(frames),
        list(array),
        [np.frombuffer(picture.tobytes(), np.uint8).reshape(picture.shape) for picture in array],  # read-only
        [Image.fromarray(picture) for picture in array],
        [picture.astype(np.float32) / 255 for picture in array],
        [frame.double() / 255 for frame in frames],
        [[frame] for frame in frames],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in kinds:
            stream = model.stream()
            answers.append([moment.probabilities for frame in kind for moment in stream(frame)][-1])
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=1e-6)
    stream = model.stream(rate=2)
    times = [m.time for m in [*stream(frames[0], 7.0), *stream(frames[1:3]), *stream(frames[3], 9.25)]]
    assert times == [7.0, 7.5, 8.0, 9.25]
    before = stream.frames
    for wrong in (
        np.zeros((4, 4, 3), np.int64),
        frames[0].float(),
        np.full((4, 4, 3), np.nan),
        "frame",
        frames[0].bool(),
    ):
        with pytest.raises(ValueError, match="Expected"):
            stream(wrong)
    assert stream.frames == before


def test_saved_and_loaded_it_goes_on(tmp_path):
    model, frames = small_model(mixer=TTT(chunk=FrameCausal(2))), clip(9)
    stream = model.stream(rate=10, smooth=1.0)
    for frame in frames[:5]:
        stream(frame)
    stream.save(tmp_path / "state")
    again = small_model(mixer=TTT(chunk=FrameCausal(2))).stream(rate=10, smooth=1.0)
    again.load(tmp_path / "state")
    for frame in frames[5:]:
        for one, other in zip(stream(frame), again(frame), strict=True):
            assert (one.time, one.frame) == (other.time, other.frame)
            assert torch.equal(one.probabilities, other.probabilities)
    again.reset()
    assert again.frames == 0
    torch.testing.assert_close(again(frames[:1])[0].probabilities, whole(model, frames[:1])[-1], rtol=0, atol=1e-5)
    other = small_model(mixer=TTT(chunk=FrameCausal(2)), labels=list("abc"))
    for path, sentence in ((tmp_path / "state", "other weights"), (tmp_path / "none", "does not exist")):
        with pytest.raises(ValueError, match=sentence):
            other.stream().load(path)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="is no stream of this model"):
        stream.load(tmp_path / "junk")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("smoothed", torch.full((3,), torch.nan), "holds NaN"),
        ("smoothed", torch.ones(7), "not of 3 classes"),
        ("waiting", torch.zeros(2, 5), "frames that wait"),
        ("waiting", torch.zeros(9, 3, 32, 32, dtype=torch.uint8), "fewer than 1"),
    ],
)
def test_a_state_that_no_stream_can_have_is_refused(tmp_path, name, value, sentence):
    model = small_model(labels=list("abc"))
    stream = model.stream(smooth=1.0)
    stream(clip(3))
    stream.save(tmp_path / "state")
    with safe_open(str(tmp_path / "state"), "pt") as file:
        tensors, about = {key: file.get_tensor(key) for key in list(file.keys())}, file.metadata()
    save_file(tensors | {name: value}, tmp_path / "other", about)
    with pytest.raises(ValueError, match=sentence):
        stream.load(tmp_path / "other")
    assert stream.frames == 3


def test_settings_and_times_are_finite():
    model = small_model()
    for settings in ({"rate": float("nan")}, {"rate": float("inf")}, {"smooth": float("nan")}):
        with pytest.raises(ValueError, match="Expected a rate above 0"):
            model.stream(**settings)
    with pytest.raises(ValueError, match="Expected a time in seconds"):
        model.stream()(clip(1), time=float("nan"))


def test_forgetting():
    model, frames = small_model(), clip(10)
    model.preprocessing.apply(frames)
    every = model.stream(rate=10, forget=Every(0.3))
    moments = [moment for frame in frames for moment in every(frame)]
    assert [m.frame for m in moments if m.reset] == [4, 7, 10]
    torch.testing.assert_close(moments[5].probabilities, whole(model, frames[3:6])[-1], rtol=0, atol=1e-5)
    film = torch.cat(
        [torch.full((4, 3, 32, 32), 30, dtype=torch.uint8), torch.full((4, 3, 32, 32), 220, dtype=torch.uint8)]
    )
    cuts = model.stream(forget=Cuts())
    moments = [moment for frame in film for moment in cuts(frame)]
    assert [(m.frame, m.reset) for m in moments if m.reset] == [(5, "a cut (change 0.75)")]
    torch.testing.assert_close(moments[-1].probabilities, whole(model, film[4:])[-1], rtol=0, atol=1e-5)
    # what was seen long ago does not count any more
    ends = []
    for start in (clip(12, seed=1), clip(12, seed=2)):
        decay = model.stream(rate=10, forget=Decay(0.05))
        ends.append([m for frame in torch.cat([start, frames]) for m in decay(frame)][-1].probabilities)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-4)
    assert (whole(model, torch.cat([clip(12, seed=1), frames]))[-1] - ends[0]).abs().max() > 1e-3
    for text in ("never", "every=60", "cut", "cut=0.3", "decay=5"):
        parse_forgetting(text)
    for text in ("every", "every=0", "decay=x", "now", "cut=-1"):
        with pytest.raises(ValueError, match="--forget"):
            parse_forgetting(text)


def test_smoothing_is_an_exponential_average():
    model, frames = small_model(), clip(5)
    raw = [m.probabilities for m in model.stream(rate=10)(frames)]
    smooth = [m.probabilities for m in model.stream(rate=10, smooth=0.2)(frames)]
    kept, expected = float(np.exp(-0.5)), raw[0]
    for probabilities, average in zip(raw[1:], smooth[1:], strict=True):
        expected = kept * expected + (1 - kept) * probabilities
        torch.testing.assert_close(average, expected, rtol=0, atol=1e-6)


def test_a_model_that_predicts_says_how_wrong_it_was():
    model, frames = predictor(), clip(6, 32, 32)
    moments = model.stream()(frames)
    with torch.no_grad():
        output, _ = model(model.preprocessing.apply(frames)[None])
    made, truth = output.timeline[0, :-1, 0].clamp(0, 1), frames[1:].float() / 255
    assert moments[0].error is None
    errors = (made - truth).square().mean((1, 2, 3)).tolist()
    assert [moment.error for moment in moments[1:]] == pytest.approx(errors, rel=1e-4)
    torch.testing.assert_close(moments[-1].upcoming, output.upcoming[0], rtol=0, atol=1e-5)
    assert json.dumps(as_row(model, moments[-1], 5)).startswith('{"time": 0.2, "frame": 6, "mse":')


def test_models_that_cannot_and_that_grow():
    with pytest.raises(ValueError, match="reads each video whole"):
        small_model(mixer=Bidirectional(TTT())).stream()
    assert grows(small_model(mixer=Attention()))
    assert not grows(small_model(mixer=Attention(window=4)))
    assert not grows(small_model(mixer=TTT(short_conv="time")))


@pytest.mark.slow
def test_an_hour_at_constant_memory_and_time():
    """108,000 frames, 30 a second. Times of the first and the last thousand are taken in turns, the first of a second
    stream: a machine whose load changes slows both. docs/how-to/live-streams.md has the figures of a run."""
    import time

    import psutil

    model, frames, process = small_model(), clip(500, 32, 32), psutil.Process()

    def read(stream, count):
        begun = time.process_time()
        for number in range(count):
            (moment,) = stream(frames[number % 500])
        return time.process_time() - begun, moment

    old, memory = model.stream(rate=30), []
    for _ in range(107):
        read(old, 1000)
        memory.append(process.memory_info().rss)
    new, pairs = model.stream(rate=30), []
    for turn in range(20):
        order = (new, old) if turn % 2 else (old, new)
        seconds = {id(stream): read(stream, 50)[0] for stream in order}
        pairs.append((seconds[id(new)], seconds[id(old)]))
    first, last = map(sum, zip(*pairs))
    assert old.frames == 108_000
    assert new.frames == 1000
    memory.append(process.memory_info().rss)
    print(f"first and last thousand: {first:.2f} and {last:.2f} s, {memory[0]:,} and {memory[-1]:,} bytes")
    assert abs(last / first - 1) < 0.1
    assert memory[-1] - memory[0] < 5e6
