"""The cache of a transformers encoder's features: single frames, and windows of them."""

import json

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra transformers")

from tests.test_transformers import KINDS, VIDEO, folder, model_of
from tests.training.conftest import write_video
from tests.training.test_cached_features import losses
from tttvideo.encoder import Transformers, filling
from tttvideo.training.run import main
from tttvideo.video.features import CachedFeatures
from tttvideo.video.reader import VideoError


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_the_cache_keeps_what_the_model_makes_of_whole_videos(kind, tmp_path, monkeypatch):
    """Also where a piece that is encoded together holds some windows of a video and a part of one."""
    monkeypatch.setattr(filling, "PIECE", 8)
    window = 4 if kind in VIDEO else 1
    name = folder(kind, tmp_path / "model")
    model = model_of(Transformers(name, cache=str(tmp_path / "cache"))).float()
    for count in (3, 8, 13):
        path = tmp_path / f"{count}.mp4"
        write_video(path, 9 * count, frames=count, size=64)
        job = filling.Job(str(path), 0, ((None, None, None),), count)
        assert filling.fill(model.encoder, model.reading, [job]) == []
        frames = model.preprocessing.apply(model.preprocessing.open(str(path)).read())[None]
        features = model.reading.open(str(path)).read()[None].float()
        assert features.shape[1:] == (count, 16, 2, 2)
        with torch.no_grad():
            assert torch.allclose(features, model.encoder.features(frames, None), atol=2e-3)
            begun = model.encoder.init_state(1)
            whole, read = model.encoder(frames, None, begun)[0], model.encoder.embed(features, None, begun)[0]
            assert torch.allclose(read, whole, atol=2e-3)
            assert whole.shape[1] == -(-count // window)
    later = model.reading.open(str(path)).read(range(8, 13)).float()  # whole windows from the middle on
    assert torch.equal(later, features[0, 8:])
    if window > 1:
        with pytest.raises(VideoError, match="keeps other frames"):
            model.reading.open(str(path)).read(range(6, 10))
        for rule, first in (("fps=5", None), ("dense", 6)):  # windows of other frames: decoded
            assert not isinstance(model.reading_of([str(path)], [(None, None)], rule, first), CachedFeatures)
        assert isinstance(model.reading_of([str(path)], [(None, None)], "dense", 8), CachedFeatures)


def test_runs_with_a_cache_of_windows(arguments, tmp_path, capfd):
    """Encode once and read clips that begin where a window does; what would move windows is refused."""
    name = folder("VideoMAE", tmp_path / "model")

    def words(out, *more, **settings):
        values = {
            "model.encoder": json.dumps({"class_path": "Transformers", "init_args": {"name": name}}),
            "data.size": "[32,32]",
            "data.max_frames": 4,
            "mix.mixup": 0.0,
            "mix.cutmix": 0.0,
            "data.augment.flip": 0.0,
            "data.augment.brightness": 0.0,
            **settings,
        }
        argv = arguments(out=out)
        at = argv.index("--model.encoder.patch")
        return [*argv[:at], *argv[at + 2 :], *(w for k, v in values.items() for w in (f"--{k}", str(v))), *more]

    cache = {"model.encoder.cache": tmp_path / "cache"}
    assert main(words("cold", **cache)) == 0
    assert "cache  19 videos, 98 frames to encode" in capfd.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "_encoded", None)  # nothing is encoded again
        assert main(words("warm", **cache)) == 0
    assert losses(tmp_path / "cold") == losses(tmp_path / "warm")
    captured = capfd.readouterr()
    assert "keeps other frames" not in captured.out + captured.err, "a clip begins where a window does"
    for settings, sentence in (
        ({"data.augment.speed": "[0.5,2]"}, "windows of 4 frames, and data.augment.speed changes which frames"),
        ({"data.sampling": "segments=4"}, "which data.sampling: segments=4 draws anew"),
        ({"data.max_frames": 6}, "data.max_frames is 6; make it a multiple of 4"),
        ({"model.encoder.trainable": 1}, "encoder.cache keeps what an encoder makes of videos"),
    ):
        assert main(words("refused", **cache, **settings)) == 2
        assert sentence in capfd.readouterr().err
