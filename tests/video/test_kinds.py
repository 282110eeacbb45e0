"""Which images of a folder are the frames of its video."""

import warnings

import numpy as np
import pytest

from tests.video.clips import write_picture
from tttvideo.video import image_reader
from tttvideo.video.decode import open_video
from tttvideo.video.kinds import choose_frames
from tttvideo.video.reader import VideoError, VideoWarning


def numbered(pattern: str, numbers=range(3)) -> list[str]:
    return [pattern.format(i) for i in numbers]


@pytest.mark.parametrize(
    ("frames", "beside"),
    [
        ("img_{:05}.jpg", ["flow_x_{:05}.jpg", "flow_y_{:05}.jpg"]),  # mmaction2
        ("img_{:05}.jpg", ["x_{:05}.jpg", "y_{:05}.jpg"]),  # TSN
        ("{:04}.png", ["{:04}_mask.png"]),
        ("rgb_{}.jpg", ["depth_{}.png"]),
        ("frame{}.jpg", ["frame{}_flow.jpg"]),
    ],
)
def test_what_is_made_from_frames_is_left_out(frames, beside):
    chosen = choose_frames([name for pattern in (*beside, frames) for name in numbered(pattern)])
    assert chosen.names == numbered(frames)
    assert chosen.left_out.count("*") == len(beside)


@pytest.mark.parametrize(
    "names",
    [
        ["b.jpg", "a.jpg", "flow.jpg"],  # no numbers
        numbered("intro_{}.jpg", range(5)) + numbered("main_{}.jpg", range(5, 12)),
        numbered("depth_{}.png"),
        numbered("s1_f{}.jpg") + numbered("s2_f{}.jpg"),
        numbered("{}.JPG", (1, 3)) + numbered("{}.png", (2, 10)),
        [],
    ],
)
def test_one_kind_is_taken_whole_in_natural_order(names):
    chosen = choose_frames(reversed(names))
    assert sorted(chosen.names) == sorted(names)
    assert chosen.left_out == ""


def test_a_picture_without_a_number_beside_numbered_ones_is_no_frame():
    frames = numbered("img_{:05}.jpg")
    assert choose_frames([*frames, "cover.jpg"]) == (frames, "cover.jpg")
    assert choose_frames([*frames, "cover.jpg", *numbered("flow_{:05}.jpg")]) == (frames, "cover.jpg, flow_*.jpg")


@pytest.mark.parametrize(
    "patterns",
    [
        ("left_{}.jpg", "right_{}.jpg"),
        ("flow_x_{}.jpg", "flow_y_{}.jpg"),
        ("a_{}.jpg", "a_{}.png"),
        ("x_{}.jpg", "y_{}.jpg"),
    ],
)
def test_several_kinds_that_may_be_frames_are_refused(patterns):
    with pytest.raises(ValueError, match=r"\(3\), .*\(3\)"):
        choose_frames([name for pattern in patterns for name in numbered(pattern)])


def test_folders_with_flow_say_what_they_take_once_and_stereo_is_refused(tmp_path):
    image_reader._already_said.clear()

    def picture(name, shade):
        write_picture(tmp_path / name, np.full((16, 16, 3), shade, np.uint8))

    for i in range(3):
        picture(f"img_{i}.png", 10 * i)
        picture(f"flow_x_{i}.png", 200)
    with pytest.warns(VideoWarning, match=r"3 images are frames; left out: flow_x_\*\.png") as said:
        assert open_video(tmp_path).read().amax((1, 2, 3)).tolist() == [0, 10, 20]
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_video(tmp_path)
    for i in range(3):
        picture(f"right_{i}.png", 10 * i)
    with pytest.raises(
        VideoError, match=r"several kinds of images, .*: flow_x_\*\.png \(3\), img_\*\.png \(3\), right"
    ):
        open_video(tmp_path)
