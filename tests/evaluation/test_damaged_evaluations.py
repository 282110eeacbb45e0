"""One value of a metrics.json or position.json replaced or taken away, one byte of an .npz file changed: a comparison
is made, or refused in one sentence."""

import copy
import json
import random
import shutil

import numpy as np
import pytest

from tests.evaluation.small import evaluate, small_model, small_run, small_set, undrawn
from tests.evaluation.test_forecasting import predictor
from tttvideo.evaluation import (
    CompareConfig,
    PositionConfig,
    compare,
    positions,
    write_positions,
    write_report,
)
from tttvideo.evaluation.report import _comparison_markdown
from tttvideo.files import read_arrays

MISSING = object()
VALUES = (MISSING, None, [], {}, "text", 1e308, -1, True, [None], 10**30)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Of a classifier, with everything that can be varied; of a model that predicts frames; each with its curve."""
    base = tmp_path_factory.mktemp("damaged")
    data = small_set(base / "set", count=6, frames=12)
    varied = {
        "frames": "8,all",
        "sampling": ["dense", "last=4"],
        "controls": ["reset"],
        "by": ["first_colour"],
        "workers": 0,
    }
    for name, model, options in (
        ("reading", small_model(), {"workers": 0} | varied),
        ("generating", predictor(), {"context": 4, "horizon": 2}),
    ):
        run, out = small_run(base / f"run-{name}", model, provenance={"clip_frames": 8}), base / name
        with undrawn():
            write_report(evaluate(run, data, **options), out)
            write_positions(*positions(PositionConfig((str(run),), str(data), str(out))), out)
    return base


def changes(value, path=()):
    """Every place in a JSON value; of equal ones in a list, the first two."""
    yield path
    if isinstance(value, dict):
        for key, part in value.items():
            yield from changes(part, (*path, key))
    elif isinstance(value, list):
        for i, part in enumerate(value[:2]):
            yield from changes(part, (*path, i))


def changed(content, path, value):
    content = copy.deepcopy(content)
    *outer, last = path
    part = content
    for key in outer:
        part = part[key]
    if value is MISSING:
        del part[last]
    else:
        part[last] = value
    return content


def of_file(file):
    content = json.loads(file.read_text())
    return content, [(path, value) for path in changes(content) if path for value in VALUES]


def outcome(folder):
    """None where a comparison is made, else the sentence that refuses it."""
    try:
        comparison = compare(CompareConfig((str(folder),), "", resamples=2))
        _comparison_markdown(comparison)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["reading", "generating"])
@pytest.mark.parametrize("name", ["metrics.json", "position.json"])
def test_one_value_of_another_kind(evaluated, tmp_path, kind, name):
    folder = tmp_path / "run"
    shutil.copytree(evaluated / kind, folder)
    content, every = of_file(folder / name)
    assert outcome(folder) is None
    made, refused = 0, set()
    for path, value in random.Random(0).sample(every, 16):
        (folder / name).write_text(json.dumps(changed(content, path, value)))
        said = outcome(folder)
        made += said is None
        if said is not None:
            assert str(folder) in said, (path, value, said)
            refused.add(path)
    assert made
    assert refused


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("reading", "metrics.json", ("checkpoint",), MISSING),
        ("reading", "metrics.json", ("results", 0), []),
        ("reading", "metrics.json", ("results", 1), [1]),
        ("reading", "metrics.json", ("results", 1, "mean_tokens_used"), []),
        ("reading", "metrics.json", ("results", 1, "mean_frames_used"), [1]),
        ("reading", "metrics.json", ("results", 0, "frames"), "some"),
        ("reading", "metrics.json", ("results", 0, "control"), "reset"),  # two rows of one condition
        ("reading", "metrics.json", ("score", "title"), [None]),
        ("reading", "metrics.json", ("clip_frames",), {}),
        ("reading", "metrics.json", ("notes",), 10**30),
        ("generating", "metrics.json", ("context",), {}),
        ("generating", "metrics.json", ("suite",), True),
        ("generating", "metrics.json", ("space",), MISSING),
        ("generating", "position.json", ("unit",), MISSING),
        ("generating", "position.json", ("unit",), 1e308),
        ("generating", "position.json", ("series",), [None]),
        ("generating", "position.json", ("series", "run-generating", "frames", 0), "text"),
    ],
)
def test_what_cannot_be_is_named(evaluated, tmp_path, kind, name, path, value):
    folder = tmp_path / "run"
    shutil.copytree(evaluated / kind, folder)
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(changed(content, path, value)))
    said = outcome(folder)
    assert said.startswith(str(folder / name))
    assert "evaluate` once more" in said or "position` once more" in said
    assert str(path[-1]) in said or "different evaluations" in said


def test_one_byte_of_arrays(tmp_path):
    """Most changes show; those that do not leave the arrays that are there as they were (dates, padding)."""
    file, rng = tmp_path / "position.npz", random.Random(0)
    arrays = {"losses_0": np.random.default_rng(0).random((1, 3, 4)), "videos_0": np.array([["a", "", ""]] * 3)}
    np.savez_compressed(file, **arrays)
    whole, refused = file.read_bytes(), 0
    for place in range(0, len(whole), 3):
        other = whole[place] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else (whole[place] + 1) % 256
        file.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
        try:
            read, said = read_arrays(file, "do it again"), None
        except ValueError as error:
            read, said = {}, str(error)
        refused += said is not None
        assert said is None or (said.startswith(f"{file} is damaged (") and said.endswith("; do it again"))
        assert all(np.array_equal(arrays[name], array) for name, array in read.items())
    assert refused > len(whole) / 6
    for size in range(0, len(whole), 20):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is damaged"):
            read_arrays(file)


def test_arrays_of_another_kind(evaluated, tmp_path):
    for kind, name, key in (("reading", "position.npz", "videos_0"), ("generating", "per_video.npz", "mse")):
        folder = tmp_path / kind
        shutil.copytree(evaluated / kind, folder)
        arrays = read_arrays(folder / name)
        for others in (arrays | {key: np.zeros(3)}, {other: arrays[other] for other in arrays if other != key}):
            np.savez(folder / name, **others)
            assert f"{name} is damaged ({'it has no' if key not in others else key}" in outcome(folder)


def test_arrays_without_the_model(evaluated, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(evaluated / "generating", folder)
    arrays = read_arrays(folder / "per_video.npz")
    methods = arrays["methods"].tolist()
    for others, reason in (
        ([{"model": "mine"}.get(name, name) for name in methods], "its methods lack 'model'"),
        ([{"copy_last": "copied"}.get(name, name) for name in methods], "its methods lack 'copy_last'"),
        ([*methods, "another"], f"its arrays are not of its {len(methods) + 1} methods"),
    ):
        np.savez(folder / "per_video.npz", **arrays | {"methods": np.array(others)})
        assert f"{folder / 'per_video.npz'} is damaged ({reason}); run `tttvideo evaluate` once more" in outcome(folder)


def test_another_task(evaluated, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(evaluated / "reading", folder)
    file = folder / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task": "Weather"}))
    assert f"of Weather and of Classification ({file} and {folder / 'position.json'})" in outcome(folder)
