"""Folders, lists and frames in memory: every video's answer, equal to reading it alone; files of answers that go on."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.small import noise_video, small_model, small_run
from tttvideo.cli import main
from tttvideo.inference.classify import Pipeline, classify_videos
from tttvideo.inference.config import How
from tttvideo.inference.frames import as_frames
from tttvideo.inference.results import Results, key_of
from tttvideo.inference.sources import find_videos
from tttvideo.inference.stream import LiveStream
from tttvideo.mixers import TTT, Bidirectional
from tttvideo.video.index import DataError, Video
from tttvideo.video.reader import VideoError
from tttvideo.video.segments import read_segments

LENGTHS = (3, 4, 10, 8, 2, 11)
SEGMENT = 4
"""Frames of videos shorter and longer than a segment, and just as long."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    (folder / "deep" / "er").mkdir(parents=True)
    for i, n in enumerate(LENGTHS):
        noise_video(folder / ("deep/er" if i % 2 else "") / f"{n}.mp4", n, seed=n)
    (folder / "bad.mp4").write_text("a text file")
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"), small_model())


def cut_png():
    """The beginning of a picture's file."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "png")
    return file.getvalue()[:1000]


def alone(model, path, frames=None):
    (piece,) = read_segments([str(path)], model.preprocessing, segment=10**9, max_frames=frames)
    with torch.no_grad():
        return model.probabilities(model(piece.frames)[0].logits[0])


def rows_of(out):
    if out.suffix == ".csv":
        with out.open(newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in out.read_text().splitlines()]


def error(capsys, *words):
    assert main([str(word) for word in words]) == 2
    shown = capsys.readouterr().err
    assert (shown.count("\n"), shown[:7]) == (1, "error: "), shown
    return shown


@pytest.mark.parametrize("mixer", [TTT(), Bidirectional(TTT())])
def test_answers_equal_those_of_videos_read_alone_and_come_as_videos_end(folder, mixer):
    model = small_model(mixer=mixer)
    videos = find_videos([str(folder)])
    assert len(videos) == 7
    how = How(batch_size=4, workers=0, segment=SEGMENT if model.streams else None)
    answers = list(classify_videos(model, videos, how))
    assert sorted(answer.video for answer in answers) == list(range(7))
    for answer in answers:
        path = videos[answer.video].path
        if path.endswith("bad.mp4"):
            assert answer.failure.startswith(f"{path}: ")
            continue
        assert answer.frames == int(os.path.basename(path)[:-4])
        torch.testing.assert_close(answer.probabilities, alone(model, path), rtol=0, atol=1e-5)
    if model.streams:  # a batch's short videos do not wait for its long ones
        batch = [Video(str(folder / name), None, None, None, None) for name in ("deep/er/11.mp4", "3.mp4")]
        assert [answer.frames for answer in classify_videos(model, batch, how)] == [3, 11]


def test_cuts_sampling_spans_and_views(folder, run):
    model = small_model()
    path = folder / "10.mp4"
    assert dict(model.classify(path, topk=9, frames=7, segment=2)) == pytest.approx(
        dict(zip(model.labels, alone(model, path, 7).tolist())), abs=1e-5
    )
    (half,) = classify_videos(model, [Video(str(path), None, None, 0.2, 0.4)], How(sampling="fps=10", workers=0))
    assert half.frames == 2
    (views,) = classify_videos(model, [Video(str(path), None, None, None, None)], How(views="clips=3x1:4", workers=0))
    assert views.frames == 12
    clips = [Video(str(path), None, None, s / 25, (s + 4) / 25) for s in (0, 3, 6)]
    each = torch.stack([answer.probabilities for answer in classify_videos(model, clips, How(workers=0))])
    torch.testing.assert_close(views.probabilities, each.mean(0), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"needs a length, as .* write clips=2x1:FRAMES"):
        model.classify(path, views="clips=2")
    with pytest.raises(
        ValueError, match=r"got one of pictures; stack the frames of a video to one array \[F, h, w, 3\]"
    ):
        model.classify([np.zeros((32, 32, 3), np.uint8)] * 4)
    with pytest.raises(ValueError, match="frames in memory are all used"):
        model.classify(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), sampling="uniform=2")
    with pytest.raises(ValueError, match="leave --views or --timeline out"):
        list(classify_videos(model, clips, How(views="spans=1"), timelines=True))


def test_paths_arrays_tensors_and_iterators(folder):
    model = small_model()
    path = folder / "10.mp4"
    (piece,) = read_segments([str(path)], model.preprocessing, segment=10**9)
    clip = piece.frames[0]
    expected = model.classify(path)
    array = clip.permute(0, 2, 3, 1).numpy()
    sources = [path, clip, array, array.astype(np.float32) / 255, clip.double() / 255, str(path)]
    for answer in [*model.classify(sources), *model.classify(iter(sources))]:
        assert [label for label, _ in answer] == [label for label, _ in expected]
        assert [p for _, p in answer] == pytest.approx([p for _, p in expected], abs=1e-5)
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield clip[:4]

    assert len(next(model.classify(endless(), batch_size=2))) == 5
    assert len(asked) == 2
    (one,) = Pipeline(model)([path], top_k=2)
    assert [list(part) for part in one] == [["score", "label"]] * 2
    assert Pipeline(model)(path, top_k=2) == one
    for wrong, sentence in (
        (clip.int(), "Expected frames of uint8"),
        (clip.float(), "Expected floating-point frames in 0..1"),
        (torch.zeros(2, 4, 8, 8), "1 or 3 colour channels"),
        (clip[None], "a batch of videos is given as a list"),
        (7, "got a int"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.classify(wrong)
    with pytest.raises(VideoError, match="is an address"):
        model.classify("rtsp://camera")
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        model.classify([path, folder / "bad.mp4"])


GREY = np.linspace(0, 1, 48).reshape(1, 4, 4, 3)
FLOATS = torch.from_numpy(GREY).permute(0, 3, 1, 2)
KINDS = {
    "longdouble": lambda: GREY.astype(np.longdouble),
    "big-endian": lambda: GREY.astype(">f8"),
    "big-endian half": lambda: GREY.astype(">f2"),
    "mask of nothing": lambda: np.ma.masked_array(GREY, False),
    "not contiguous": lambda: np.repeat(GREY, 2, 2)[:, :, ::2],
    "half": lambda: FLOATS.half(),
    "bfloat16": lambda: FLOATS.bfloat16(),
    "float8": lambda: FLOATS.to(torch.float8_e4m3fn),
    "other float8": lambda: FLOATS.to(torch.float8_e5m2),
    "sparse": lambda: FLOATS.to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(FLOATS.float(), 1 / 255, 0, torch.quint8),
    "in a graph": lambda: FLOATS.clone().requires_grad_(),
}
REFUSED = {
    "masked": lambda: (np.ma.masked_array(GREY, GREY > 0.5), "without masked pixels"),
    "objects": lambda: (np.array([[{}]]), "got dtype..O"),
    "words": lambda: (np.array([["a"]]), "got dtype"),
    "records": lambda: (np.zeros((2, 2), [("a", "u1"), ("b", "u1")]), "got dtype"),
    "complex": lambda: (GREY.astype(complex), "got dtype"),
    "bools": lambda: (GREY > 0.5, "got dtype..bool"),
    "big-endian shorts": lambda: (GREY.astype(">u2"), "got dtype"),
    "nothing": lambda: (np.zeros(()), r"got \[\]"),
    "meta": lambda: (FLOATS.to("meta"), "got a meta tensor"),
    "nested": lambda: (torch.nested.nested_tensor([FLOATS[0], FLOATS[0, :, :2]]), "got a nested tensor"),
    "float4": lambda: (torch.zeros(1, 3, 4, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "no such form"),
    "bool tensor": lambda: (FLOATS > 0.5, "got bool"),
    "small integers": lambda: (FLOATS.to(torch.int8), "got int8"),
    "complex tensor": lambda: (FLOATS.to(torch.complex64), "got complex64"),
    "NaN": lambda: (FLOATS * torch.nan, "got NaN or infinite pixels; give finite ones.$"),
    "PIL of 16 bits": lambda: (Image.new("I;16", (4, 4)), "mode I;16"),
    "PIL of nothing": lambda: (Image.new("RGB", (0, 0)), r"got \[0, 0\]"),
    "a cut file": lambda: (Image.open(io.BytesIO(cut_png())), "cannot be read"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_array_is_the_same_picture(kind):
    frames, expected = as_frames(KINDS[kind]()), as_frames(GREY)
    coarse = 16 if "float8" in kind else 1
    assert frames.dtype == torch.uint8
    assert int((frames.int() - expected.int()).abs().max()) <= coarse


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_picture_is_one_sentence(kind):
    pictures, words = REFUSED[kind]()
    with pytest.raises(ValueError, match=words) as refused:
        as_frames([pictures])
    assert "\n" not in str(refused.value)
    assert "stream" not in str(refused.value)
    with pytest.raises(ValueError, match=r"The stream is as it was\.$"):
        LiveStream(small_model())(pictures)


def test_how_many_labels():
    model, clip = small_model(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for count, given in ((1, np.int64(1)), (2, np.uint8(2)), (3, torch.tensor(3)), (6, 2**80)):
        assert len(model.classify(clip, topk=given)) == count
    for wrong in (True, np.True_, 2.0, np.float32(1), "2", None, [2]):
        with pytest.raises(ValueError, match="topk must be a whole number, got"):
            model.classify(clip, topk=wrong)
        with pytest.raises(ValueError, match="--batch-size must be a whole number"):
            model.classify(clip, batch_size=wrong if wrong is not None else 2.5)
    for wrong in (0, -1, np.int8(-5)):
        with pytest.raises(ValueError, match="topk must be at least 1, got"):
            model.classify(clip, topk=wrong)


def test_sources(folder, tmp_path, monkeypatch):
    listing = tmp_path / "list.csv"
    listing.write_text("a.mp4,1,2.5\nb.mp4,0,3\nc.mp4\n")  # a span, or the whole
    (tmp_path / "a.mp4").write_text("")
    found = find_videos([str(listing), "-", str(folder / "**" / "*.mp4")], ["x y.mp4\n", "\n", str(listing)])
    spans = [(os.path.basename(v.path), v.start, v.end) for v in found]
    assert spans[:3] == [("a.mp4", 1, 2.5), ("b.mp4", 0, 3), ("c.mp4", None, None)]
    assert len(spans) == 4 + 7
    with pytest.raises(DataError, match="no file is called like"):
        find_videos([str(tmp_path / "*.mkv")])
    with pytest.raises(DataError, match="tttvideo stream MODEL ADDRESS"):
        find_videos(["http://host/film.mp4"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no videos"):
        find_videos([str(empty)])


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_second_call_goes_on_after_a_torn_row(run, folder, tmp_path, capsys, kind):
    out = tmp_path / f"answers.{kind}"
    words = ["classify", str(run), str(folder), "--out", str(out), "--batch-size", "3", "--topk", "2"]
    assert main(words) == 2
    assert "7 answers (1 failed)" in capsys.readouterr().out
    whole = out.read_bytes()
    rows = rows_of(out)
    assert len({row["path"] for row in rows}) == len(rows) == 7
    assert {bool(row.get("error")) for row in rows} == {True, False}
    cut = whole[: whole.rfind(b"\n", 0, -40) + 20]  # in the middle of the last row
    out.write_bytes(cut)
    assert main(words) in (0, 2)
    assert "1 answers" in capsys.readouterr().out
    assert sorted(map(str, rows_of(out))) == sorted(map(str, rows))
    assert main(words) == 2  # a script wants to know, whichever call wrote the row
    assert "0 answers (0 failed; 7 were there, 1 of them with an error: delete" in capsys.readouterr().out
    assert len(rows_of(out)) == 7
    assert main([*words[:2], str(folder / "3.mp4"), *words[3:]]) == 0  # it has an answer
    capsys.readouterr()
    capsys.readouterr()
    assert "another kind (reading: 'all frames, dense' there, '4 frames, dense' now)" in error(
        capsys, *words, "--frames", 4
    )


def test_names_with_line_ends_and_quotes_survive_a_csv_file(tmp_path):
    same, columns = {"model": "m"}, ["path", "start", "end", "label_1", "model"]
    odd = 'a "b"\n=c,\u2028d.mp4'
    results = Results(tmp_path / "r.csv", columns, same)
    results.add({"path": odd, "start": 0.1 + 0.2, "end": None, "label_1": "x\ny"})
    results.close()
    whole = (tmp_path / "r.csv").read_bytes()
    for end in range(len(whole) + 1):
        (tmp_path / "r.csv").write_bytes(whole[:end])
        again = Results(tmp_path / "r.csv", columns, same)
        assert again.errors == ({key_of(odd, 0.1 + 0.2, None): ""} if end == len(whole) else {}), end
        again.close()


def test_wrong_files_of_results(run, folder, tmp_path, capsys):
    words = ["classify", run, folder, "--out"]
    assert "must end in .jsonl or .csv" in error(capsys, *words, tmp_path / "x.xml")
    assert "there is no folder" in error(capsys, *words, tmp_path / "no" / "x.csv")
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    assert "is no file of such results" in error(capsys, *words, tmp_path / "x.jsonl")
    (tmp_path / "x.csv").write_text("path,label\nfilm.mp4,cat\n")
    assert "its columns are path, label; those of this call, with its" in error(capsys, *words, tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == "path,label\nfilm.mp4,cat\n"


def command(run, folder, out, *more):
    return [sys.executable, "-m", "tttvideo", "classify", str(run), str(folder), "--out", str(out), *more]


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_or_twice(run, tmp_path):
    folder, out = tmp_path / "films", tmp_path / "answers.jsonl"
    folder.mkdir()
    for i in range(40):
        noise_video(folder / f"{i}.mp4", 4, seed=i)
    lost = 0
    for i in range(6):
        process = subprocess.Popen(command(run, folder, out, "--batch-size", "2"), start_new_session=True)
        deadline = time.monotonic() + 120
        before = len(out.read_bytes().splitlines()) if out.exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            if out.exists() and len(out.read_bytes().splitlines()) >= min(40, before + 3 + i):
                break
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        lost += not out.read_bytes().endswith(b"\n")
    assert subprocess.run(command(run, folder, out), check=False).returncode == 0
    paths = [row["path"] for row in rows_of(out)]
    assert len(paths) == len(set(paths)) == 40
    assert lost <= 6


@pytest.mark.slow
def test_several_processes_share_the_work_and_the_file_is_whole(run, folder, tmp_path):
    out = tmp_path / "answers.csv"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29541"]
    words = command(run, folder, out, "--workers", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([words[0], *launcher, *words[1:]], env=environment, check=False, timeout=300)
    rows = rows_of(out)
    assert len(rows) == len({row["path"] for row in rows}) == 7
    model = small_model()
    for row in rows:
        if not row["error"]:
            assert float(row["probability_1"]) == pytest.approx(float(alone(model, row["path"]).max()), abs=1e-5)


def test_two_calls_on_one_file_are_refused(run_script, tmp_path):
    first = Results(tmp_path / "r.jsonl", ["path"], {})
    code = (
        "import sys; from tttvideo.inference.results import Results\n"
        "try: Results(sys.argv[1], ['path'], {{}})\n"
        "except ValueError as error: print(error)"
    )
    done = run_script(code, [str(tmp_path / "r.jsonl")])
    assert "is being written to by another call" in done.stdout
    first.close()


def test_a_timeline_is_a_picture_and_its_numbers(run, folder, tmp_path):
    out = tmp_path / "times"
    words = [
        "classify",
        str(run),
        str(folder / "10.mp4"),
        str(folder / "3.mp4"),
        "--timeline",
        str(out),
        "--segment",
        "4",
    ]
    assert main(words) == 0
    model = small_model()
    numbers = np.load(out / "10.npy")
    assert numbers.shape == (10, 1 + len(model.labels))
    np.testing.assert_allclose(numbers[:, 0], np.arange(10) / 25, atol=1e-6)
    for end in (1, 7, 10):
        np.testing.assert_allclose(numbers[end - 1, 1:], alone(model, folder / "10.mp4", end), atol=1e-5)
    assert (out / "3.png").read_bytes()[:4] == b"\x89PNG"
