"""Suites for prediction: the files show what meta.csv says, and the stated errors are the truth."""

import csv
import gzip
import json
import struct
from dataclasses import replace

import numpy as np
import pytest

from tttvideo import cli
from tttvideo.video.decode import open_video
from tttvideo.video.synthetic import (
    MovingDigits,
    MovingShapes,
    Occlusion,
    Revisit,
    SuiteError,
    ceiling_for,
    make,
    suite_from,
)
from tttvideo.video.synthetic.moving_shapes import BACKGROUND
from tttvideo.video.synthetic.suite import Plan

SMALL = "train=2,val=3"
REVISIT = Revisit(split=SMALL, frames=24, size=32, columns=6)
OCCLUSION = Occlusion(split=SMALL, frames=20, size=32, hidden=3)
SHAPES = MovingShapes(split=SMALL, frames=12, size=32, speed=3.0)


def drawn(suite, count=60):
    """Rows of meta.csv, as text, and the frames in 0..1."""
    for index in range(count):
        plan = suite.plan("val", index)
        row = {key: str(value) for key, value in plan.cause.items()}
        yield row, suite.draw(plan, suite.rng("drawing", "val", index)) / 255.0


def mnist(folder, count=5):
    """Files as MNIST's: digits that are their own number in brightness, with an empty border."""
    folder.mkdir(exist_ok=True)
    for name, first in (("train", 100), ("t10k", 200)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 4:24, 4:24] = (first + np.arange(count))[:, None, None]
        data = struct.pack(">4i", 2051, count, 28, 28) + images.tobytes()
        file = folder / f"{name}-images-idx3-ubyte"
        if name == "train":
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(data))
        else:
            file.write_bytes(data)
    return str(folder)


@pytest.mark.parametrize("suite", [SHAPES, REVISIT, OCCLUSION], ids=lambda s: s.name)
def test_files_and_descriptions(suite, tmp_path):
    made = make(suite, tmp_path / "set")
    assert (made.written, make(suite, tmp_path / "set").kept) == (5, 5)
    with (made.out / "meta.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{r['split']}/{int(r['index']):05d}.mp4" for r in rows]
    assert "label" not in rows[0]
    described = json.loads((made.out / "suite.json").read_text())
    assert suite_from(described) == suite
    with open_video(str(made.out / rows[-1]["path"])) as reader:
        frames = reader.read().permute(0, 2, 3, 1).numpy()
    truth = suite.draw_video("val", 2)
    assert frames.shape == truth.shape
    error = np.square(frames / 255.0 - truth / 255.0)
    told = suite.revealed(rows[-1])
    error = error if told is None else error[told.mask]
    assert 0 < error.mean() < 5 * described["bounds"]["codec"] < 0.03


@pytest.mark.parametrize("suite", [REVISIT, OCCLUSION], ids=lambda s: s.name)
def test_bounds_are_what_such_observers_reach(suite):
    """The mean colour without memory, and the last frame, on the pixels that are revealed."""
    no_memory, copy_last = [], []
    for row, video in drawn(suite, 400):
        mask = suite.revealed(row).mask
        assert not mask[0].any()
        no_memory.append(np.square(video[mask] - 0.5).mean())
        copy_last.append(np.square(video[1:][mask[1:]] - video[:-1][mask[1:]]).mean())
    for found, name in ((no_memory, "no_memory"), (copy_last, "copy_last")):
        standard_error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found) - suite.bounds[name]) < 4 * standard_error


# moving-shapes


def test_a_shape_flies_straight_and_stays_inside():
    lone = MovingShapes(shapes=1, frames=40, size=64)
    for row, video in drawn(lone, 20):
        shape = (video != BACKGROUND / 255).any(-1)
        area = shape.sum((1, 2))
        assert area.min() > 0.7 * area.max()  # pixel centres in and out, never cut off by an edge
        for axis, places in (("x", shape.any(1)), ("y", shape.any(2))):
            middle = np.array([np.flatnonzero(place).mean() + 0.5 for place in places])
            assert abs(middle[0] - float(row[f"{axis}_1"])) <= 1
            assert np.abs(np.diff(middle)).max() <= abs(float(row[f"d{axis}_1"])) + 1.01  # a pixel of rounding


def test_later_shapes_lie_on_top():
    crowd, lone = MovingShapes(shapes=6, frames=30, size=32), MovingShapes(shapes=1, frames=30, size=32)
    overlapping = 0
    for row, video in drawn(crowd, 10):
        alone = []
        for i in range(1, 7):
            plan = Plan(
                None, {key.replace(f"_{i}", "_1"): value for key, value in row.items() if key.endswith(f"_{i}")}
            )
            alone.append((lone.draw(plan, np.random.default_rng()) != BACKGROUND).any(-1))
        assert (video[alone[-1]] == np.array(list(bytes.fromhex(row["colour_6"][1:]))) / 255).all()
        overlapping += int((alone[-1] & np.any(alone[:-1], 0)).any())
    assert overlapping > 5


# moving-digits


def test_moving_digits_follow_the_protocol(tmp_path):
    suite = MovingDigits(mnist=mnist(tmp_path / "mnist"), split=SMALL)
    for split, first in (("train", 100), ("val", 200)):
        plan = suite.plan(split, 0)
        video = suite.draw(plan, suite.rng("drawing", split, 0))
        assert video.shape == (20, 64, 64, 3)
        values = {first + int(str(plan.cause[f"image_{i}"]).split(":")[1]) for i in (1, 2)}
        assert max(values) in set(np.unique(video).tolist()) <= values | {0}  # the brighter one covers the other
    # the trajectory of OpenSTL's loader, written down again
    for place, direction in ((0.2, 0.9), (0.95, 0.7), (0.03, -1.0), (0.5, 0.0)):
        expected, at, heading = [], place, direction
        for _ in range(20):
            at += heading * 0.1
            if at <= 0:
                at, heading = 0.0, -heading
            if at >= 1.0:
                at, heading = 1.0, -heading
            expected.append(int(at * 36))
        assert suite.trajectory(place, direction).tolist() == expected


def test_moving_digits_are_written_without_loss(tmp_path):
    suite = MovingDigits(mnist=mnist(tmp_path / "mnist"), split="train=1,val=1")
    made = make(suite, tmp_path / "set")
    with open_video(str(made.out / "val" / "00000.mp4")) as reader:
        frames = reader.read().permute(0, 2, 3, 1).numpy().astype(int)
    assert abs(frames - suite.draw_video("val", 0)).max() <= 2  # the rounding of YUV


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: "", "needs --mnist FOLDER"),
        (lambda folder: str(folder / "nowhere"), "has no train-images-idx3-ubyte"),
        (
            lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(b"x" * 40) and str(folder),
            "is not a file of",
        ),
        (lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(b"xyz") and str(folder), "is not a file of"),
        (
            lambda folder: (
                (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 0, 28, 28)) and str(folder)
            ),
            "at least one",
        ),
        (lambda folder: (folder / "train-images-idx3-ubyte.gz").write_bytes(b"x") and str(folder), "cannot be read"),
        (
            lambda folder: (
                (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x" * 99)[:10] + b"damaged")
                and str(folder)
            ),
            "cannot be read",
        ),
    ],
)
def test_mnist_files_that_are_not_there(damage, said, tmp_path):
    with pytest.raises(SuiteError, match=said):
        MovingDigits(mnist=damage(tmp_path))


# revisit


def test_the_camera_goes_where_it_is_told():
    assert {row["direction"] for row, _ in drawn(REVISIT, 20)} == {"left", "right"}
    for direction in ("left", "right"):
        for row, video in drawn(replace(REVISIT, direction=direction), 5):
            assert row["direction"] == direction
            one, other = (
                (video[1, :, :-8], video[0, :, 8:]) if direction == "right" else (video[1, :, 8:], video[0, :, :-8])
            )
            assert (one == other).all()


def test_each_lap_shows_the_same_again():
    for row, video in drawn(REVISIT, 6):
        assert (video[6:] == video[:-6]).all()
        assert len(np.unique(video[:6], axis=0)) == 6
        told = REVISIT.revealed(row)
        assert told.group.tolist() == [-1, 0, 0, *[1] * 6, *[2] * 6, *[3] * 6, *[4] * 3]
        for t in range(1, 24):  # all else was in the frame before, one cell aside
            there = {cell.tobytes() for cell in video[t - 1][:, ::8].transpose(1, 0, 2)}
            new = [cell.tobytes() not in there for cell in video[t][:, ::8].transpose(1, 0, 2)]
            assert new == told.mask[t, 0, ::8].tolist()


def test_laps_of_several_lengths():
    suite = replace(REVISIT, columns="7,6,6")
    assert suite.columns == "6,7"
    lengths = []
    for row, video in drawn(suite, 8):
        length = int(row["columns"])
        assert (video[length:] == video[:-length]).all()
        assert len(np.unique(video[:length], axis=0)) == length
        assert suite.revealed(row).group.tolist() == [-1, *((3 + t) // length for t in range(1, 24))]
        lengths.append(length)
    assert lengths == [6, 7] * 4
    # Sets of one length do not need the column: they were made without it once.
    row, _ = next(drawn(REVISIT, 1))
    assert (REVISIT.revealed(row).group == REVISIT.revealed({"direction": row["direction"]}).group).all()


# occlusion


def test_the_object_is_hidden_for_exactly_so_many_frames():
    for row, video in drawn(OCCLUSION, 40):
        colour = np.array(list(bytes.fromhex(row["colour"][1:]))) / 255
        shows = (video == colour).all(-1).any((1, 2))
        start, end = int(row["hidden_from"]), int(row["shows_at"])
        assert end - start == 3
        assert shows[: end + 1].tolist() == [True] * start + [False] * 3 + [True]
        told = OCCLUSION.revealed(row)
        assert np.flatnonzero(told.group == 0).tolist() == [end] == np.flatnonzero(told.mask.any((1, 2))).tolist()
        assert (video[told.mask] == colour).all()
        assert ((video[end] == colour).all(-1) == told.mask[end]).all()


# bad input


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Revisit(cell=5), "cells have an even number of pixels"),
        (lambda: Revisit(direction="up"), "must be left, right or both"),
        (lambda: Revisit(frames=1), "two frames or more"),
        (lambda: Revisit(columns=8), "a lap needs more than that"),
        (lambda: Revisit(columns="16,8"), "a lap needs more than that"),
        (lambda: Revisit(columns="six"), "columns='six': give a number, or several"),
        (lambda: Occlusion(hidden=0), "at least one frame"),
        (lambda: Occlusion(speed=17), "between 1 and 16"),
        (lambda: Occlusion(frames=10), "it may take 15 frames"),
        (lambda: MovingShapes(shapes=0), "something must move"),
        (lambda: MovingShapes(speed=16.0), "below 16"),
    ],
)
def test_wrong_settings(build, said):
    with pytest.raises(SuiteError, match=said):
        build()


def test_commands(tmp_path, capsys):
    assert cli.main(["make-data", "revisit", "--out", str(tmp_path / "r"), "--count", "2", "--frames", "20"]) == 0
    said = capsys.readouterr().out
    assert "2 videos written; train 1, val 1" in said
    assert "newly revealed pixels (pixels in 0..1): no memory 0.084, copy last 0.168, codec 0.000" in said
    assert cli.main(["make-data", "moving-digits", "--out", str(tmp_path / "d")]) == 2
    assert "needs --mnist FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    with pytest.raises(SuiteError, match="no labels"):
        ceiling_for(REVISIT.describe(), "dense")
