"""`tttvideo stream` on real sources: files, images, pipes, and servers on this machine."""

import contextlib
import functools
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import types

import av
import numpy as np
import pytest

from tests.evaluation.small import noise_video, small_model, small_run
from tests.video.clips import numbered, write
from tttvideo.cli import main
from tttvideo.inference.live import Shot, _newest
from tttvideo.mixers import Attention


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"), small_model())


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return noise_video(tmp_path_factory.mktemp("film") / "film.mp4", 12)


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys, *words):
    assert main(["stream", *map(str, words)]) == 2
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in shown.err
    return shown.err


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_file_a_folder_of_images_and_a_pattern(run, film, tmp_path, capsys):
    assert main(["stream", str(run), str(film), "--topk", "1"]) == 0
    rows = lines(capsys)
    assert [row["frame"] for row in rows] == list(range(1, 13))
    assert [row["time"] for row in rows] == pytest.approx(np.arange(12) / 25)
    label, probability = small_model().classify(film, topk=1)[0]
    assert rows[-1]["classes"] == [{"label": label, "probability": pytest.approx(probability, abs=1e-5)}]
    assert main(["stream", str(run), str(film), "--every", "0.2", "--fps", "12.5"]) == 0
    assert [row["time"] for row in lines(capsys)] == pytest.approx([0, 0.24, 0.4])  # the last one always
    from PIL import Image

    for i, picture in enumerate(numbered(4)):
        Image.fromarray(picture).save(tmp_path / f"{i:03}.png")
    for source in (tmp_path, tmp_path / "%03d.png"):
        assert main(["stream", str(run), str(source)]) == 0
        assert [row["frame"] for row in lines(capsys)] == [1, 2, 3, 4]


@contextlib.contextmanager
def piped(monkeypatch, data: bytes):
    """Standard input that cannot be sought, with this in it."""
    read, write_end = os.pipe()

    def fill():
        with contextlib.suppress(BrokenPipeError), open(write_end, "wb") as file:
            file.write(data)

    thread = threading.Thread(target=fill)
    thread.start()
    with open(read, "rb") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", types.SimpleNamespace(buffer=file))
        yield
    thread.join()


def test_pipes(run, tmp_path, monkeypatch, capsys):
    pixels = numbered(5, 24, 32)
    raw = ["stream", str(run), "-", "--size", "32x24", "--rate", "10"]
    with piped(monkeypatch, pixels.tobytes()):
        assert main(raw) == 0
    assert [row["time"] for row in lines(capsys)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    with piped(monkeypatch, pixels.tobytes()[:-7]):
        assert "ended within frame 5" in refused(capsys, *raw[1:])
    stream = write(tmp_path / "film.ts", pixels, options={"bf": "0"})
    with piped(monkeypatch, stream.read_bytes()):
        assert main(["stream", str(run), "-"]) == 0
    assert len(lines(capsys)) == 5
    with piped(monkeypatch, b"nothing that FFmpeg knows" * 50):
        assert "standard input: invalid data" in refused(capsys, run, "-")
    with piped(monkeypatch, b""):
        assert "standard input is empty" in refused(capsys, run, "-")


def test_the_memory_is_kept_between_calls(run, film, tmp_path, capsys):
    state = tmp_path / "state"
    for _ in range(2):
        assert main(["stream", str(run), str(film), "--state", str(state)]) == 0
    assert [row["frame"] for row in lines(capsys)] == list(range(1, 25))


def test_http(run, film, capsys):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(film.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert main(["stream", str(run), f"{address}/film.mp4"]) == 0
        assert len(lines(capsys)) == 12
        assert "404" in refused(capsys, run, f"{address}/no.mp4", "--retries", 0)
        server.shutdown()


def test_a_stream_has_the_pixels_that_classify_reads(run, tmp_path, capsys):
    """Of a larger video: resized while it is decoded, whose colours are others than those of resized pictures."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 9, 13, 3), np.uint8)
    film = write(tmp_path / "film.mp4", blocks.repeat(8, 1).repeat(8, 2), options={"qp": "10"})
    label, probability = small_model().classify(film, topk=1)[0]
    for source in (film, f"file://{film}"):
        assert main(["stream", str(run), str(source), "--topk", "1"]) == 0
        assert lines(capsys)[-1]["classes"] == [{"label": label, "probability": pytest.approx(probability, abs=1e-6)}]


def test_rtsp(run, film, capsys):
    """PyAV listens; another process pushes, as a camera's encoder does."""
    address = f"rtsp://127.0.0.1:{port()}/live"
    push = (
        "import av, sys, time; import numpy as np; time.sleep(1.0)\n"
        "for attempt in range(50):\n"
        "    try:\n"
        "        out = av.open(sys.argv[1], 'w', format='rtsp', options={'rtsp_transport': 'tcp'})\n"
        "        s = out.add_stream('libx264', rate=25, options={'tune': 'zerolatency', 'preset': 'ultrafast'})\n"
        "        s.width = s.height = 32; s.pix_fmt = 'yuv420p'\n"
        "        for i in range(40):\n"
        "            f = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * i, np.uint8), format='rgb24')\n"
        "            out.mux(s.encode(f)); time.sleep(0.02)\n"
        "        out.mux(s.encode()); out.close(); break\n"
        "    except (OSError, av.FFmpegError) as error:\n"
        "        print(error, file=sys.stderr); time.sleep(0.2)\n"
    )
    pusher = subprocess.Popen([sys.executable, "-c", push, address], stderr=subprocess.PIPE)
    words = ["--options", "rtsp_flags=listen", "--timeout", "60", "--retries", "0"]
    code = main(["stream", str(run), address, *words])
    shown = capsys.readouterr()
    _, said = pusher.communicate(timeout=60)
    assert len(shown.out.splitlines()) == 40, (shown.err, said)
    assert code == 0, shown.err


def test_a_server_that_does_not_answer_and_one_that_goes_away(run, film, capsys, monkeypatch):
    monkeypatch.setattr("tttvideo.inference.live.WAIT", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x"
        begun = time.monotonic()
        assert "no answer within 1 s" in refused(capsys, run, address, "--timeout", 1, "--retries", 0)
        assert time.monotonic() - begun < 10
    said = refused(capsys, run, f"rtsp://127.0.0.1:{port()}/x", "--timeout", 2, "--retries", 2)
    assert said.count("note: ") == 2
    assert "try 2 of 2" in said
    assert "(tried 3 times)" in said


def test_hostile_sources(run, tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("no video at all")
    assert "is a text file" in refused(capsys, run, tmp_path / "text.mp4")
    assert "No such file" in refused(capsys, run, tmp_path / "none.mp4")
    assert "there is no camera /dev/video99" in refused(capsys, run, "99", "--retries", 0)
    assert "--size is WIDTHxHEIGHT" in refused(capsys, run, "-", "--size", "64")
    assert "--forget takes never" in refused(capsys, run, "-", "--forget", "all")
    assert "--rate must be above 0" in refused(capsys, run, "-", "--rate", "0")
    growing = small_run(tmp_path / "attention", small_model(mixer=Attention()))
    assert "cannot decay" in refused(capsys, growing, tmp_path / "text.mp4", "--forget", "decay=3")
    assert "attention without a window" in refused(capsys, growing, tmp_path / "text.mp4")
    broken = tmp_path / "header.mkv"
    broken.write_bytes(b"\x1a\x45\xdf\xa3" + os.urandom(400))
    assert "header.mkv" in refused(capsys, run, broken)
    with av.open(str(tmp_path / "many.gif"), "w") as out:
        stream = out.add_stream("gif", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "rgb8"
        for i in range(100):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), i, np.uint8), format="rgb24")))
        out.mux(stream.encode())
    assert main(["stream", str(run), str(tmp_path / "many.gif")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 100


def test_only_the_newest_frame_is_read_and_drops_are_said():
    notes = []

    def camera():
        for i in range(20):
            time.sleep(0.01)
            yield Shot(i, i / 100)

    got = []
    for shot in _newest(camera(), notes.append):
        got.append(shot.frame)
        time.sleep(0.05)
    assert got == sorted(set(got))
    assert 2 <= len(got) < 15
    assert got[-1] == 19
    assert "frames were dropped: to the model everything moves faster" in notes[0]
