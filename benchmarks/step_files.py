"""The exported streaming step beside its model on a CPU: bytes on disk and frames a second.

    python -m benchmarks.step_files [--frames 200] [--rounds 5] [--threads 1] [--json FILE]

Each unit of frames is read by the file's step and then by the model, chained from the initial state, so that both meet
the same moments of the machine (as `tttvideo export --verify` does). Rates are medians over rounds, the ratio is the
median of the ratios within a round. Needs `pip install 'tttvideo[onnx]'`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from tttvideo.backbone import Backbone
from tttvideo.encoder import Patches
from tttvideo.export.runtimes import ONNX, TORCH, verify, write_step
from tttvideo.export.step import Step
from tttvideo.mixers import GRU, GatedDeltaNet, Mixer
from tttvideo.model import ModelConfig, VideoModel
from tttvideo.ttt import MLP, TTT, Adam, Linear, TokenCausal
from tttvideo.video.transforms import Preprocessing

from .measure import environment

MODELS: dict[str, tuple[Mixer, dict[str, Any]]] = {
    "TTT-Linear": (TTT(inner=Linear(), heads=2), {}),
    "TTT-MLP": (TTT(inner=MLP(), heads=2), {}),
    "TTT-MLP, Adam": (TTT(inner=MLP(), heads=2, optimizer=Adam()), {}),
    "TTT-MLP as ttt-lm": (
        TTT(inner=MLP(), heads=2, chunk=TokenCausal(16), short_conv="raster", share_qk=True, gate=True),
        {"norm": "rms", "pre_conv": True},
    ),
    "Gated DeltaNet": (GatedDeltaNet(heads=2), {}),
    "GRU": (GRU(), {}),
}
"""Of frames of 64 x 64 pixels, 4 x 4 tokens, in two blocks of 128 channels."""


def measure(mixer: Mixer, settings: dict[str, Any], frames: int, rounds: int, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    config = ModelConfig(encoder=Patches(patch=16), backbone=Backbone(width=128, depth=2, mixer=mixer, **settings))
    model = VideoModel(config, preprocessing=Preprocessing(size=(64, 64)), labels=list("abcdef")).eval()
    model.save_pretrained(folder)
    write_step(Step(model), folder, ("torch", "onnx"))
    film = torch.randint(0, 256, (frames, 3, 64, 64), dtype=torch.uint8)
    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    for form, name in (("onnx", ONNX), ("torch", TORCH)):
        checked = [verify(model, folder, form, film) for _ in range(rounds + 1)][1:]
        row[form] = {
            "bytes": (folder / name).stat().st_size,
            "frames_per_s": round(statistics.median(each.file_rate for each in checked), 1),
            "model_frames_per_s": round(statistics.median(each.model_rate for each in checked), 1),
            "ratio": round(statistics.median(each.file_rate / each.model_rate for each in checked), 2),
            "largest_difference": max(each.difference for each in checked),
        }
    return row | {"weights_bytes": (folder / "model.safetensors").stat().st_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = {}
    print(f"{'':18}{'weights':>10}{'ONNX':>10}  onnxruntime, PyTorch (frames/s), ratio; the same of step.pt2")
    for name, (mixer, settings) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = row = measure(mixer, settings, args.frames, args.rounds, Path(folder))
        rates = [
            f"{each['frames_per_s']:8.0f}{each['model_frames_per_s']:8.0f}{each['ratio']:6.2f}"
            for each in (row["onnx"], row["torch"])
        ]
        print(f"{name:18}{row['weights_bytes']:10,}{row['onnx']['bytes']:10,}{'   '.join(rates)}", flush=True)
        if args.json:  # after each row: a run that is stopped keeps those it has
            given = {"frames": args.frames, "rounds": args.rounds, "threads": args.threads}
            results = {"environment": environment(torch.device("cpu")), "settings": given, "rows": rows}
            args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
