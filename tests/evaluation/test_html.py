"""The report: one file, names are no markup, samples are what the model saw, failures are all there."""

import json
import re

import numpy as np
import pytest

from tests.evaluation.small import evaluate, small_model, small_run, small_set
from tttvideo.evaluation import write_report
from tttvideo.evaluation.samples import Look, choose, look_at, strip, thumbnails
from tttvideo.evaluation.settings import Setting
from tttvideo.evaluation.table import ACCURACY
from tttvideo.mixers import TTT, Bidirectional
from tttvideo.video.index import Video
from tttvideo.video.sampling import Dense


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    """Twelve videos in two classes with names that look like markup, and a file that is no video."""
    base = tmp_path_factory.mktemp("report")
    data = small_set(base / "set")
    videos = sorted(data.glob("val/*/*.mp4"))
    broken = base / "broken.mp4"
    broken.write_bytes(b"no video")
    rows = [f"{video},{'a<b>&x' if i % 2 else 'c$1$'}\n" for i, video in enumerate(videos)]
    file = base / "list.csv"
    file.write_text("path,label\n" + "".join(rows) + f"{broken},c$1$\n")
    return file


def test_one_file_with_everything(listing, tmp_path):
    run = small_run(tmp_path / "run", small_model(["a<b>&x", "c$1$"]))
    found = evaluate(run, listing, split="all", frames="8,all", samples=3, workers=0)
    write_report(found, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "a&lt;b&gt;&amp;x" in page
    assert "<b>&x" not in page
    assert "broken.mp4" in page
    assert "is a text file, not a video" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing comes from elsewhere
    wrong = [row for row in found.predictions if row["frames"] == "all" and not row["correct"] and not row["failure"]]
    assert f"{len(wrong)} of 13 videos" in page
    assert page.count('class="text thumbs"') == len(wrong)
    assert len(found.samples) == 3
    assert len(found.worst) == min(12, len(wrong))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["streaming"] is None


def test_a_sample_ends_at_the_answer_of_the_evaluation(listing, tmp_path):
    model = small_model(["a<b>&x", "c$1$"])
    run = small_run(tmp_path / "run", model)
    result = evaluate(run, listing, split="all", frames="8", samples=4, workers=0)
    assert len(result.samples) == 4
    for sample in result.samples:
        assert sample.picture.startswith(b"\x89PNG")
        assert sample.thumbnail.startswith(b"\x89PNG")
        look = look_at(model, Video(sample.row["path"], 0, None, None, None), sample.row, Setting(8, Dense()))
        assert (look.total, look.steps) == (8, list(range(1, 9)))
        assert look.at == list(range(8))
        assert look.frames.shape == (8, 32, 32, 3)
        assert next(iter(look.curves)) == sample.row["label"]
        assert look.curves[sample.row["prediction"]][-1] == pytest.approx(float(sample.row["probability"]), abs=1e-4)


def test_a_model_that_does_not_stream_has_frames_and_no_curves(listing, tmp_path):
    model = small_model(["a<b>&x", "c$1$"], mixer=Bidirectional(TTT()))
    result = evaluate(small_run(tmp_path / "run", model), listing, split="all", samples=1)
    (sample,) = result.samples
    look = look_at(model, Video(sample.row["path"], 0, None, None, None), sample.row, Setting(None, Dense()))
    assert look.curves == {}
    assert len(look.frames) == 12
    assert strip(look) == sample.picture
    write_report(result, tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()


def test_right_and_wrong_in_turn_and_the_surest_wrong_first():
    rows = [
        {"label": label, "correct": correct, "probability": str(p), "failure": failure}
        for label, correct, p, failure in (
            ("a", 1, 0.9, ""),
            ("a", 1, 0.9, ""),
            ("b", 1, 0.5, ""),
            ("a", 0, 0.6, ""),
            ("b", 0, 0.8, ""),
            ("b", 0, 0.0, "not a video"),
        )
    ]
    shown, wrong = choose(rows, 4, ACCURACY)
    assert wrong == [4, 3]
    assert shown == [0, 4, 2, 3]
    assert choose(rows, 9, ACCURACY)[0] == [0, 4, 2, 3, 1]


def test_thumbnails_keep_the_shape_of_frames():
    from io import BytesIO

    from PIL import Image

    sample = Look({"label": "a"}, 9, list(range(9)), np.zeros((9, 20, 40, 3), np.uint8), [], {})
    image = Image.open(BytesIO(thumbnails(sample)))
    assert image.size == (4 * (144 + 4) - 4, 72)
