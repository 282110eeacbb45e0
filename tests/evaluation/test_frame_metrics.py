"""Metrics of frames: grey ones, and those that need the user's weight files, with files made here."""

import json

import pytest
import torch
from torch import nn

from tests.evaluation.small import noise_video, small_run
from tests.evaluation.test_forecasting import predictor
from tttvideo.cli import main
from tttvideo.tasks.frame_metrics import FrameMetrics, VideoDistance

ALEXNET = "alexnet-owt-7be5be79.pth"


class I3D(nn.Module):
    """Called as I3D is; its features are the means of each colour over each half of the video."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        if rescale:
            x = x / 127.5 - 1
        half = x.shape[2] // 2
        return torch.cat([x[:, :, :half].flatten(2).mean(2), x[:, :, half:].flatten(2).mean(2)], 1)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    file = tmp_path_factory.mktemp("i3d") / "i3d.pt"
    with pytest.warns((FutureWarning, DeprecationWarning)):  # by version
        torch.jit.script(I3D()).save(str(file))
    return file


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("lpips") / ALEXNET
    torch.save(alexnet().state_dict(), file)
    return file


def test_grey_pictures_have_one_channel():
    made, truth = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 3, 16, 16)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    error = ((made - truth) * weights).sum(2)
    found = FrameMetrics(grey=True)(made, truth)
    assert torch.allclose(found[:, 0], error.square().flatten(2).sum(2), rtol=1e-5)
    assert torch.allclose(found[:, 1], error.abs().flatten(2).sum(2), rtol=1e-5)
    # of frames that are grey: a third of what all channels sum to, and the same PSNR and SSIM
    grey = [x[:, :, :1].expand_as(x) for x in (made, truth)]
    three, one = FrameMetrics()(*grey), FrameMetrics(grey=True)(*grey)
    assert torch.allclose(one[:, :2], three[:, :2] / 3, rtol=1e-4)
    assert torch.allclose(one[:, 2:], three[:, 2:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_of_openstl_by_hand(channels):
    """scikit-image's definition, window by window: uniform, 7 x 7, inside the frame, unbiased, a range of 2."""
    made, truth = torch.rand(1, 1, 3, 9, 10), torch.rand(1, 1, 3, 9, 10)
    metrics = FrameMetrics(grey=channels == 1)
    pictures = made[0, 0].double(), truth[0, 0].double()
    if channels == 1:
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
        pictures = [(x * weights).sum(0, keepdim=True) for x in pictures]
    found = []
    for x, y in zip(*pictures, strict=True):
        for top in range(3):
            for left in range(4):
                pair = torch.stack([z[top : top + 7, left : left + 7].flatten() for z in (x, y)])
                (a, b), cov = pair.mean(1), torch.cov(pair)
                c1, c2 = 0.02**2, 0.06**2
                found.append(
                    (2 * a * b + c1) * (2 * cov[0, 1] + c2) / ((a**2 + b**2 + c1) * (cov[0, 0] + cov[1, 1] + c2))
                )
    at = metrics.names.index("ssim_openstl")
    assert float(metrics(made, truth)[0, at, 0]) == pytest.approx(float(sum(found) / len(found)), rel=1e-5)
    assert metrics(made[..., :6], truth[..., :6])[0, at].isnan().all()


def test_lpips_by_hand(alexnet):
    made, truth = torch.rand(2, 2, 3, 64, 64), torch.rand(2, 2, 3, 64, 64)
    measure = FrameMetrics(lpips=alexnet)
    assert measure.names == ("mse", "mae", "psnr", "ssim", "ssim_openstl", "lpips")
    found = measure(made, truth)
    assert found.shape == (2, 6, 2)
    assert measure(truth, truth)[:, -1].abs().max() == 0
    # the definition, layer by layer: unit vectors of channels, their squared difference weighted and averaged
    weights = torch.load(alexnet)
    network, total = measure.lpips, torch.zeros(4)
    assert torch.equal(network.net.slice1[0].weight, weights["features.0.weight"])
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    maps = [network.net(((2 * x.flatten(0, 1) - 1) - shift) / scale) for x in (made, truth)]
    for one, two, linear in zip(*maps, network.lins, strict=True):
        unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-8) for x in (one, two)]
        total += ((unit[0] - unit[1]).square() * linear.model[1].weight).sum(1).mean((1, 2)).detach()
    assert torch.allclose(found[:, -1].flatten(), total, rtol=1e-4)


def test_video_distance_by_hand(i3d):
    torch.manual_seed(0)
    context, truth, made = torch.rand(12, 4, 3, 8, 8), torch.rand(12, 6, 3, 8, 8), 0.5 * torch.rand(12, 6, 3, 8, 8)
    distance = VideoDistance(i3d, ("model",), 10, torch.device("cpu"), trust=True)
    for part in (slice(0, 5), slice(5, 12)):
        distance.add({"model": made[part]}, truth[part], context[part])
    a, b = (I3D()(255 * torch.cat([context, x], 1).transpose(1, 2), True, True, True).double() for x in (truth, made))
    product = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).sqrt().real.sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * product
    assert distance.summary()["model"] == pytest.approx(float(expected), rel=1e-2, abs=1e-3)


def test_reported_by_evaluate(alexnet, i3d, tmp_path, capsys):
    run = small_run(tmp_path / "run", predictor(size=64))
    for i in range(3):
        noise_video(tmp_path / f"{i}.mp4", 12, seed=i)
    words = [
        "evaluate",
        run,
        "--data",
        tmp_path,
        "--split",
        "all",
        "--context",
        "6",
        "--horizon",
        "5",
        "--out",
        tmp_path,
    ]
    assert main([str(word) for word in [*words, "--lpips", alexnet, "--fvd", i3d, "--trust", "--grey"]]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert all(len(row["lpips"]) == 5 and min(row["lpips"]) > 0 for row in metrics["per_horizon"].values())
    assert set(metrics["fvd"]) == set(metrics["per_horizon"])
    assert metrics["grey"] is True
    said = capsys.readouterr().out
    assert "height and width of a grey frame" in said
    assert "Fréchet video distance, context included: model" in said


class Plant:
    """A pickle that makes a file where it is opened."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def planted(folder, name):
    torch.save({"features.0.weight": Plant(folder / "it-ran")}, folder / name)
    return folder / name


def damaged(folder, name):
    file = folder / name
    file.write_bytes(b"not weights")
    return file


@pytest.mark.parametrize(
    ("option", "file", "said"),
    [
        ("--lpips", lambda f: f / "nowhere" / ALEXNET, "give torchvision's ImageNet weights under their own name"),
        ("--lpips", lambda f: damaged(f, "alex.pth"), "one of alexnet-owt"),
        ("--lpips", lambda f: damaged(f, ALEXNET), "is damaged"),
        ("--lpips", lambda f: planted(f, ALEXNET), "holds Python objects"),
        ("--fvd", lambda f: f / "nowhere.pt", "there is no such file"),
        ("--fvd", lambda f: damaged(f, "i3d.pt"), "is not I3D as TorchScript"),
    ],
)
def test_files_that_are_not_what_they_should_be(option, file, said, tmp_path, capsys):
    run = small_run(tmp_path / "run", predictor())
    noise_video(tmp_path / "0.mp4", 12, seed=0)
    words = ["evaluate", run, "--data", tmp_path, "--split", "all", "--context", "6", "--horizon", "5"]
    hub = torch.hub.get_dir()
    assert main([str(word) for word in [*words, option, file(tmp_path), "--trust"]]) == 2
    assert torch.hub.get_dir() == hub
    assert not (tmp_path / "it-ran").exists()
    found = capsys.readouterr().err
    assert found.startswith(f"error: {option}")
    assert said in found
    assert found.count("\n") == 1


def test_too_few_frames_for_a_video_distance(i3d):
    with pytest.raises(ValueError, match="10 frames or more"):
        VideoDistance(i3d, ("model",), 9, torch.device("cpu"), trust=True)


class Writer(torch.nn.Module):
    """A program in TorchScript that writes a file of the user's when it is called."""

    def __init__(self, target: str):
        super().__init__()
        self.target = target

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        torch.save(x, self.target)
        return x.flatten(1)[:, :4]


def test_torchscript_runs_only_if_it_is_trusted(tmp_path):
    target = tmp_path / "it-ran"
    torch.jit.script(Writer(str(target))).save(tmp_path / "i3d.pt")
    with pytest.raises(ValueError, match="a program that may write your files"):
        VideoDistance(tmp_path / "i3d.pt", ("model",), 10, torch.device("cpu"))
    assert not target.exists()
    VideoDistance(tmp_path / "i3d.pt", ("model",), 10, torch.device("cpu"), trust=True)
    assert target.exists()  # so the refusal above is for a reason
