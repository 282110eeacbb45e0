"""What a predicted frame is compared with the true one by, and what needs the user's own weight files."""

import tempfile
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PERFECT = 100.0
"""PSNR in dB of a frame without error, whose logarithm has no end."""

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in a grey picture (ITU-R BT.601)."""

LEAST_I3D = 10
"""Frames that I3D needs at least."""


class FrameMetric(NamedTuple):
    """How reports show a metric.

    Attributes:
        title: its name in words.
        lower: smaller is better, larger if False; None: not known, and no value is marked as the best.
        brief: shown on the screen, too, and not on the page alone.
    """

    title: str
    lower: bool | None = None
    brief: bool = False


FRAME_METRICS = {
    "mse": FrameMetric("Squared error of a frame (sum)", lower=True, brief=True),
    "mae": FrameMetric("Absolute error of a frame (sum)", lower=True),
    "psnr": FrameMetric("PSNR (dB)", lower=False, brief=True),
    "ssim": FrameMetric("SSIM", lower=False),
    "ssim_openstl": FrameMetric("SSIM of OpenSTL", lower=False),
    "lpips": FrameMetric("LPIPS", lower=True),
    "cosine": FrameMetric("Cosine of features", lower=False, brief=True),
}
"""By the name in metrics.json."""


class FrameMetrics:
    """Errors of predicted frames, by name in the order of ``names``; ``convention`` says how they are meant.

    Args:
        space: ``pixels`` or ``features``, as ``Prediction`` has it.
        grey: compare grey pictures, one channel, as the tables of grey data sets do.
        lpips: torchvision's ImageNet weights of AlexNet, VGG-16 or SqueezeNet 1.1, told apart by the file's name: LPIPS
            (Zhang et al., arXiv 1801.03924) is measured too.

    Raises:
        ValueError: where these do not go together, or the file does not hold such weights.
    """

    def __init__(self, space: str = "pixels", *, grey: bool = False, lpips: str | Path | None = None):
        if space == "features" and (grey or lpips):
            raise ValueError("--grey and --lpips are of pixels, and this model predicts features; leave them out")
        self.space, self.grey = space, grey
        self.lpips = None if lpips is None else perceptual(Path(lpips))
        self.names = ("mse", "mae", "cosine") if space == "features" else ("mse", "mae", "psnr", "ssim", "ssim_openstl")
        self.names += () if self.lpips is None else ("lpips",)

    @property
    def convention(self) -> str:
        if self.space == "features":
            return (
                "features of the frozen encoder; mse and mae are summed over channels and tokens of a frame, cosine is "
                "the mean over tokens of the cosine between prediction and truth; each is a mean over videos"
            )
        where = "height and width of a grey frame" if self.grey else "channels, height and width of a frame"
        perceptual = "" if self.lpips is None else ", lpips of RGB frames as torchmetrics has it"
        return (
            f"pixels in 0..1, predictions clipped to them; mse and mae are summed over {where} (OpenSTL's convention, "
            f"which does not clip there), psnr is in dB (at most 100), ssim as torchmetrics has it, ssim_openstl as "
            f"OpenSTL's tables have it{perceptual}; each is a mean over videos"
        )

    def __call__(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Predicted and true frames [B, K, 3, H, W] in 0..1, or maps of features -> [B, metrics, K]. SSIM is NaN for
        frames smaller than its window of 11 pixels, OpenSTL's for those smaller than its 7."""
        if self.space == "features":
            cosine = nn.functional.cosine_similarity(predicted, truth, dim=2).flatten(2).mean(2)
            return torch.stack([*_sums(predicted - truth), cosine], 1).float()
        compared = [_grey(x) if self.grey else x for x in (predicted, truth)]
        error = compared[0] - compared[1]
        psnr = -10.0 * error.square().flatten(2).mean(2).log10()
        values = [*_sums(error), psnr.clamp(max=PERFECT), _ssim(*compared), _ssim_openstl(*compared)]
        if self.lpips is not None:
            network = self.lpips.to(predicted.device)
            # the network's own range is -1..1
            each = network(2 * predicted.flatten(0, 1).float() - 1, 2 * truth.flatten(0, 1).float() - 1)
            values.append(each.flatten().unflatten(0, predicted.shape[:2]))
        return torch.stack(values, 1).float()


def _sums(error: Tensor) -> tuple[Tensor, Tensor]:
    return error.square().flatten(2).sum(2), error.abs().flatten(2).sum(2)


def _grey(frames: Tensor) -> Tensor:
    """[B, K, 3, H, W] -> [B, K, 1, H, W]."""
    return (frames * frames.new_tensor(LUMA).view(3, 1, 1)).sum(2, keepdim=True)


def _ssim(predicted: Tensor, truth: Tensor) -> Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(truth.shape[-2:]) < 11:
        return truth.new_full(truth.shape[:2], torch.nan)
    values = structural_similarity_index_measure(
        predicted.flatten(0, 1), truth.flatten(0, 1), data_range=1.0, reduction="none"
    )
    assert isinstance(values, Tensor)
    return values.unflatten(0, predicted.shape[:2])


def _ssim_openstl(predicted: Tensor, truth: Tensor) -> Tensor:
    """SSIM as the tables of OpenSTL have it, which call scikit-image's ``structural_similarity`` with what it took for
    floats by itself: a uniform window of 7, unbiased variances, and a range of 2 (-1..1) although pixels lie in 0..1.
    """
    side, count = 7, 7 * 7
    if min(truth.shape[-2:]) < side:
        return truth.new_full(truth.shape[:2], torch.nan)
    x, y = (z.flatten(0, 2)[:, None].double() for z in (predicted, truth))  # [B K channels, 1, H, W]

    def windowed(z: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(z, side, stride=1)

    mean_x, mean_y = windowed(x), windowed(y)
    unbiased = count / (count - 1)
    var_x, var_y = (unbiased * (windowed(z * z) - mean * mean) for z, mean in ((x, mean_x), (y, mean_y)))
    cov = unbiased * (windowed(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    each = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return each.flatten(1).mean(1).unflatten(0, predicted.shape[:3]).mean(2).float()


def perceptual(file: Path) -> nn.Module:
    """torchmetrics' network of LPIPS with the user's ImageNet weights; its own linear layers come with the library.

    torchvision would unpickle the file, which can run code: it gets a copy of the tensors that the file holds.

    Raises:
        ValueError: if the file is not there, is not one of torchvision's, or holds more than tensors.
    """
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

    weights_of: dict[str, Any] = {"alex": AlexNet_Weights, "vgg": VGG16_Weights, "squeeze": SqueezeNet1_1_Weights}
    names = {kind: Path(weights.IMAGENET1K_V1.url).name for kind, weights in weights_of.items()}
    kind = next((kind for kind, name in names.items() if name == file.name), None)
    if kind is None or not file.is_file():
        which = ", ".join(names.values())
        raise ValueError(f"--lpips {file}: give torchvision's ImageNet weights under their own name, one of {which}")
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own message tells how to run the file's code
        raise ValueError(
            f"--lpips {file} holds Python objects, which would run its code, or is damaged; give torchvision's weights"
        ) from error
    except Exception as error:  # each kind of damage raises something else
        raise ValueError(f"--lpips {file} does not hold torchvision's weights ({_first_line(error)})") from error
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").mkdir()
        torch.save(tensors, Path(folder) / "checkpoints" / file.name)
        try:
            torch.hub.set_dir(folder)  # where torchvision looks before it downloads
            network = LearnedPerceptualImagePatchSimilarity(net_type=kind).net  # type: ignore[arg-type]
        except Exception as error:  # weights of another network
            raise ValueError(f"--lpips {file} does not hold torchvision's weights ({_first_line(error)})") from error
        finally:
            torch.hub.set_dir(before)
    return network.eval()


class VideoDistance:
    """Fréchet video distance (Unterthiner et al., arXiv 1812.01717) by torchmetrics' Fréchet distance, over the
    features of the user's I3D: the TorchScript file that StyleGAN-V and others use (``i3d_torchscript.pt``), called
    with videos [B, 3, F, H, W] in 0..255 and ``rescale=True, resize=True, return_features=True``.

    Args:
        trust: TorchScript is a program, which may write any file of the user's: without trust it is not opened.

    Raises:
        ValueError: if the file is not trusted, is not there or is no such network.
    """

    def __init__(
        self, file: str | Path, methods: tuple[str, ...], frames: int, device: torch.device, *, trust: bool = False
    ):
        if not Path(file).is_file():
            raise ValueError(
                f"--fvd {file}: there is no such file; give I3D as TorchScript, such as i3d_torchscript.pt"
            )
        if not trust:
            raise ValueError(
                f"--fvd {file} is TorchScript, a program that may write your files; if you trust it, add --trust "
                "(trust=True)"
            )
        if frames < LEAST_I3D:
            raise ValueError(f"--fvd needs videos of {LEAST_I3D} frames or more, context and horizon together")
        try:
            with warnings.catch_warnings():
                # Torch would rather have users export anew, but these files are what the field compares by.
                warnings.simplefilter("ignore", FutureWarning)
                network = torch.jit.load(str(file), map_location=device).eval()
            features = _I3D(network, device, frames)
        except Exception as error:  # a wrong archive, a wrong signature: each raises something else
            raise ValueError(
                f"--fvd {file} is not I3D as TorchScript, such as i3d_torchscript.pt ({_first_line(error)})"
            ) from error
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.count = 0
        self.distances = {method: FrechetInceptionDistance(features).to(device) for method in methods}

    def add(self, predicted: dict[str, Tensor], truth: Tensor, context: Tensor) -> None:
        """Predicted and true frames [B, K, 3, H, W] in 0..1 that follow the same context."""
        self.count += len(truth)
        for method, distance in self.distances.items():
            distance.update(torch.cat([context, truth], 1), real=True)
            distance.update(torch.cat([context, predicted[method]], 1), real=False)

    def summary(self) -> dict[str, float | None]:
        """By method; None for fewer than two videos, which have no covariance."""
        if self.count < 2:
            return dict.fromkeys(self.distances)
        return {method: round(float(distance.compute()), 4) for method, distance in self.distances.items()}


class _I3D(nn.Module):
    """Videos [B, F, 3, H, W] in 0..1 -> features [B, num_features]."""

    def __init__(self, network: Any, device: torch.device, frames: int):
        super().__init__()
        self.network = network
        self.num_features = int(self(torch.zeros(1, frames, 3, 32, 32, device=device)).shape[1])

    @torch.no_grad()
    def forward(self, videos: Tensor) -> Tensor:
        return self.network(255.0 * videos.transpose(1, 2).float(), rescale=True, resize=True, return_features=True)


def _first_line(error: Exception) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
