"""`tttvideo serve`: what its page says is what the model says, wrong files get a sentence; once, in a real browser."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from tests.evaluation.small import LABELS, noise_video, small_model, small_run
from tests.video.clips import numbered, write
from tttvideo.backbone import Backbone
from tttvideo.cli import main
from tttvideo.encoder import Patches
from tttvideo.evaluation.generating import forecasts, read_clip
from tttvideo.inference.panel import panels_of, read_side_by_side
from tttvideo.inference.serve import Answers
from tttvideo.mixers import TTT, Attention, Bidirectional, LinearAttention
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.tasks import Prediction
from tttvideo.video.transforms import Preprocessing


def prediction_model() -> VideoModel:
    torch.manual_seed(0)
    config = ModelConfig(Patches(16), Backbone(width=32, depth=1, mixer=TTT()), Prediction())
    return VideoModel(config, preprocessing=Preprocessing(size=(32, 32)), labels=[]).eval()


def read(models, path):
    panels = panels_of(models, str(path), 60)
    for _ in read_side_by_side(panels, threading.Lock()):
        pass
    return panels


def test_answers_are_those_of_classify_and_grow(tmp_path, monkeypatch):
    video = noise_video(tmp_path / "<b>.mp4", 40)
    models = {
        "TTT": small_model(),
        "Attention": small_model(mixer=Attention()),
        "Bidirectional": small_model(mixer=Bidirectional(LinearAttention()), tubelets=True),
    }
    panels = read(models, video)
    for own, model in zip(panels, models.values(), strict=True):
        expected = dict(model.classify(video, topk=6))
        assert len(own.answers) == 5
        for answer in own.answers:
            assert answer.share == pytest.approx(expected[answer.label], abs=1e-5)
        assert own.answers[0].label == next(iter(expected))
        assert own.sentences[0].startswith("40 of 40 frames read")
        assert [len(line.split()) for _, line in own.chart.lines] == [40 // model.encoder.stride] * 5
    monkeypatch.setattr("tttvideo.inference.panel.SHOWN", 1)  # others may have had more before
    for own, alone in zip(panels, read(models, video), strict=True):
        assert [answer.label for answer in alone.answers] == [own.answers[0].label]
    assert "kept" in panels[0].sentences[0]
    assert "grew from" in panels[1].sentences[0]

    answers = Answers({"TTT": small_model(["<i>", "${1}", "{{2}}", *LABELS[3:]])}, 60)
    pages = list(answers.of(str(video)))
    assert 'data-done="True"' in pages[-1]
    assert "<i>" not in pages[-1]
    best = re.search(r'class="label">(.*?)</span><span>(.*?)<', pages[-1])
    assert best
    assert float(best[2]) == pytest.approx(panels[0].answers[0].share, abs=1e-3)
    assert "appear here" in next(answers.of(None))

    monkeypatch.setattr("tttvideo.inference.serve.PAUSE", 0)
    wanted = []
    answers.want(str(video), wanted)
    growing = answers.of(str(video), wanted)
    assert ['data-done="False"' in next(growing) for _ in range(2)] == [True, True]
    answers.want("another", wanted)
    assert list(growing) == []  # 40 frames are three segments, and a last page


def test_forecasts_are_those_of_predict(tmp_path):
    video, model = noise_video(tmp_path / "v.mp4", 40), prediction_model()
    panels = panels_of({"m": model}, str(video), 60)
    (own,) = panels
    sentences = [own.sentences[0] for _ in read_side_by_side(panels, threading.Lock())]
    assert sentences[0] == "Each frame above what was expected of it."
    assert sentences[-1] == "The last 20 frames, above what the model generates from all before them."
    clip = read_clip(str(video), model.preprocessing, 40)
    expected = forecasts(model, clip[None, :20], 20)["model"][0]
    torch.testing.assert_close(own._expected, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own._truth, clip[20:].float() / 255)
    with torch.no_grad():
        output, _ = model(clip[None, :20])
    truth = clip[1:20].float() / 255
    errors = (output.timeline[0, :19, 0].clamp(0, 1) - truth).square().flatten(1).mean(1)
    copied = (clip[:19].float() / 255 - truth).square().flatten(1).mean(1)
    np.testing.assert_allclose(np.array(own._errors)[:, 1:], torch.stack([errors, copied], 1), rtol=1e-3, atol=1e-5)
    assert own.pictures.startswith(b"\x89PNG")


def test_wrong_files_get_one_sentence(tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    write(tmp_path / "long.mp4", numbered(20), rate=1)
    one = write(tmp_path / "one.mp4", numbered(1))
    damaged = small_model()
    with torch.no_grad():
        damaged.head.classifier.weight.fill_(torch.nan)
    for model, name, sentence in (
        (small_model(), "text.mp4", "text.mp4: is a text file, not a video."),
        (small_model(), "empty.mp4", "empty.mp4: the file is empty."),
        (small_model(), "long.mp4", "long.mp4 lasts 19 s, and up to 10 s are read here; cut it."),
        (small_model(), "gone.mp4", "gone.mp4: No such file or directory."),
        (prediction_model(), one.name, "one.mp4 has 1 frames; m needs 2 to have something to predict."),
        (damaged, one.name, "m answers with NaN: its weights are damaged; use an earlier checkpoint."),
    ):
        (page,) = Answers({"m": model}, 10).of(str(tmp_path / name))
        assert f'role="alert">{sentence}</p>' in page
        assert str(tmp_path) not in page
    assert "Traceback" not in capsys.readouterr().err


def test_what_cannot_be_served_is_refused(tmp_path, capsys, monkeypatch):
    run = small_run(tmp_path / "run", small_model())
    monkeypatch.setitem(sys.modules, "gradio", None)
    for words, sentence in (
        ([str(run)], "pip install 'tttvideo[serve]'"),
        ([str(run), "--port", "0"], "--port must be 1 to 65535, got 0"),
        ([str(run), "--max-upload", "0"], "--max-upload must be above 0, got 0"),
        ([str(run), "--concurrency", "0"], "--concurrency must be at least 1, got 0"),
        ([], "needs MODELS"),
    ):
        assert main(["serve", *words]) == 2
        assert sentence in capsys.readouterr().err


class Browser:
    """A headless Chromium with one page, driven over a pipe (the DevTools protocol, a zero byte after each message)."""

    def __init__(self, program, folder):
        theirs, self.ours = os.pipe()
        ours, theirs_out = os.pipe()

        def third_and_fourth():
            ends = os.dup(theirs), os.dup(theirs_out)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        words = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([program, *words], preexec_fn=third_and_fourth, close_fds=False, **quiet)
        os.close(theirs)
        os.close(theirs_out)
        self.answers, self.number, self.events, self.session = os.fdopen(ours, "rb"), 0, [], {}
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self("Network.enable")

    def __call__(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | self.session
        os.write(self.ours, json.dumps(message).encode() + b"\0")
        while True:
            data = bytearray()
            while (byte := self.answers.read(1)) != b"\0":
                assert byte, "the browser has gone"
                data += byte
            answer = json.loads(data)
            if answer.get("id") == self.number:
                return answer["result"]
            self.events.append(answer)

    def js(self, code):
        return self("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def wait(self, code, seconds=120):
        end = time.monotonic() + seconds
        while not (value := self.js(code)):
            assert time.monotonic() < end, f"{code} did not come"
            time.sleep(0.2)
        return value

    def open(self, address, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=address)
        self.wait("!!document.querySelector('input[type=file]')")

    def upload(self, path):
        root = self("DOM.getDocument", depth=0)["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def close(self):
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture
def chromium():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return program or pytest.skip("needs Chromium")


@pytest.fixture
def page(tmp_path, chromium):
    """The address of a served small model."""
    pytest.importorskip("gradio", reason="needs the extra serve")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    run = small_run(tmp_path / "run", small_model())
    words = [str(run), "--port", str(port), "--examples", str(noise_video(tmp_path / "example.mp4", 8, seed=3))]
    command = [sys.executable, "-m", "tttvideo", "serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == f"run: http://127.0.0.1:{port}/ (Ctrl-C ends)\n", server.stderr.read()
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.send_signal(signal.SIGINT)
            _, said = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_video_dropped_in_a_browser(page, chromium, tmp_path):
    from PIL import Image

    video = noise_video(tmp_path / "v.mp4", 40)
    label, share = small_model().classify(video, topk=1)[0]
    (tmp_path / "text.mp4").write_text("not a video")
    with contextlib.closing(Browser(chromium, tmp_path / "profile")) as browser:
        for width, height in ((1280, 900), (390, 844)):
            browser.open(page, width, height)
            browser.upload(video)
            browser.wait("document.querySelector('.panels')?.dataset.done == 'True'")
            assert browser.js("document.querySelector('.panel .label').textContent") == label
            said = browser.js("document.querySelector('.panel li span:nth-child(2)').textContent")
            assert float(said) == pytest.approx(share, abs=1e-3)
            assert browser.js("document.documentElement.scrollWidth") <= width
            picture = base64.b64decode(browser("Page.captureScreenshot")["data"])
            assert Image.open(io.BytesIO(picture)).width == width
        browser.open(page, 1280, 900)
        browser.js("document.querySelector('.gallery-item, .gallery button, [id^=dataset] button').click()")
        browser.wait("document.querySelector('.panels')?.dataset.done == 'True'")
        browser.open(page, 1280, 900)
        browser.upload(tmp_path / "text.mp4")
        assert (
            browser.wait("document.querySelector('.refused')?.textContent") == "text.mp4: is a text file, not a video."
        )
        asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith((page, "data:", "blob:", "about:"))] == []
