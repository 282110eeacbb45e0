"""What reading videos costs, against decord, PyAV and torchcodec (those that are installed).

    python -m benchmarks.input [--rounds 5] [--videos 1000] [--minutes 10] [--only PART] [--kind WORD]
                               [--json FILE]

Processor seconds of one thread (user and system), the readers taking turns, so that a drift of the machine's speed
meets all of them; ratios are medians over the ratios of the same round. Each row is written when it is measured, with
the load of the machine. Parts:

- `clips`: frames/s of whole H.264 clips at four sizes, as they are and resized to 112 x 112, opening included; frames
  come as contiguous tensors uint8 [F, 3, H, W]. `tttvideo, first` is a file that was never read: its scan is included.
- `late`: 64 frames at 95 % of a long file of each codec: opening, reading, wrong frames (painted.py); of a file that is
  met for the first time, and of one that was read whole before, which only tttvideo remembers.
- `memory`: what a process holds after so many videos, one after the other, each reader in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from benchmarks.decoding_matrix import about, numbers, requests, wrong
from benchmarks.measure import ratio
from benchmarks.painted import BITS, GOP, KINDS, RATE, can_write, write
from tttvideo.video import catalog, probe
from tttvideo.video.decode import open_video

SIZES = {(240, 320): 900, (360, 640): 600, (720, 1280): 300, (1080, 1920): 200}  # frames of each
SMALL = (112, 112)
LATE = [
    *(("H.264, B-frames", "mp4"), ("H.264", "mkv"), ("H.264", "ts"), ("HEVC", "mp4"), ("AV1", "mp4")),
    *(("VP9, hidden frames", "webm"), ("MPEG-2", "ts"), ("MPEG-4, B-frames", "avi"), ("WMV 2", "wmv")),
]
Size = tuple[int, int] | None
Wanted = Sequence[int] | None
Row = dict[str, Any]
Read = Callable[[Wanted], Tensor]  # frames uint8 [F, 3, H, W], all or those with these numbers


@contextmanager
def by_tttvideo(path: Path, size: Size) -> Iterator[Read]:
    with open_video(path, size) as video:
        yield video.read


@contextmanager
def by_decord(path: Path, size: Size) -> Iterator[Read]:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    height, width = size or (-1, -1)
    reader = decord.VideoReader(str(path), num_threads=1, height=height, width=width)

    def read(wanted: Wanted) -> Tensor:
        asked = list(range(len(reader)) if wanted is None else wanted)
        parts = [torch.from_numpy(reader.get_batch(asked[i : i + 64]).asnumpy()) for i in range(0, len(asked), 64)]
        return torch.cat([part.permute(0, 3, 1, 2).contiguous() for part in parts])

    yield read


@contextmanager
def by_pyav(path: Path, size: Size) -> Iterator[Read]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        height, width = size or (stream.height, stream.width)

        def read(wanted: Wanted) -> Tensor:
            chosen = None if wanted is None else set(wanted)
            last = None if wanted is None else max(wanted)
            frames = []
            for number, frame in enumerate(container.decode(stream)):
                if chosen is None or number in chosen:
                    frames.append(frame.reformat(width, height, "rgb24", interpolation="BILINEAR").to_ndarray())
                if number == last:
                    break
            return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()

        yield read


@contextmanager
def by_torchcodec(path: Path, size: Size, mode: str = "exact") -> Iterator[Read]:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    resize = [Resize(size)] if size else None
    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode=mode, transforms=resize)  # type: ignore[arg-type]

    def read(wanted: Wanted) -> Tensor:
        if wanted is None:
            return decoder.get_frames_in_range(0, len(decoder)).data.contiguous()
        return decoder.get_frames_at(list(wanted)).data.contiguous()

    yield read


@contextmanager
def by_tttvideo_first(path: Path, size: Size) -> Iterator[Read]:
    """As if the file had never been read."""
    file = probe.identity(str(path))
    entry = catalog.place_of(file, None)
    if entry is not None:
        entry.unlink(missing_ok=True)
    probe.forget()
    with open_video(path, size) as video:
        yield video.read


READERS: dict[str, Callable[..., Any]] = {
    "tttvideo": by_tttvideo,
    "tttvideo, first": by_tttvideo_first,
    "decord": by_decord,
    "pyav": by_pyav,
    "torchcodec": by_torchcodec,
    "torchcodec approximate": functools.partial(by_torchcodec, mode="approximate"),
}
MODULES = {"pyav": "av", "tttvideo": "tttvideo", "tttvideo, first": "tttvideo"}


def installed(*leave_out: str) -> list[str]:
    names = [name for name in READERS if name not in leave_out]
    return [name for name in names if importlib.util.find_spec(MODULES.get(name, name.split()[0]))]


# Whole clips


def write_moving(path: Path, size: tuple[int, int], frames: int) -> None:
    """H.264 of a blurred texture that moves, with a little noise: as hard to decode as a film of its size."""
    height, width = size
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (height // 8 + 40, width // 8 + 40, 3), np.uint8)
    texture = np.asarray(av.VideoFrame.from_ndarray(coarse, "rgb24").reformat(width + 320, height + 320).to_ndarray())
    noise = draw.integers(0, 12, (8, height, width, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23", "bf": "2"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size = GOP
        for i in range(frames):
            y, x = round(40 + 40 * np.sin(i / 17)), i * 3 % 300
            picture = texture[y : y + height, x : x + width] // 2 + noise[i % 8] + 50
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        out.mux(stream.encode())


def clips(folder: Path, rounds: int) -> Iterator[Row]:
    for (height, width), frames in SIZES.items():
        path = folder / f"{height}.mp4"
        write_moving(path, (height, width), frames)
        for size in (None, SMALL):
            readers = installed("torchcodec approximate")
            times: dict[str, list[float]] = {name: [] for name in readers}
            for turn in range(rounds + 1):  # the first is a warm-up
                for name in sorted(readers, key="tttvideo".__eq__):  # after it was read for the first time
                    begun = time.process_time()
                    with READERS[name](path, size) as read:
                        shape = read(None).shape
                    seconds = time.process_time() - begun
                    assert shape == (frames, 3, *(size or (height, width)))
                    if turn:
                        times[name].append(seconds)
            row = {
                "size": [height, width],
                "read_as": list(size or (height, width)),
                "frames": frames,
                "frames_per_second": {name: frames / statistics.median(runs) for name, runs in times.items()},
                "tttvideo_over": {name: ratio(times[name], times["tttvideo"]) for name in readers[1:]},
                "first_over_decord": ratio(times["decord"], times["tttvideo, first"]) if "decord" in times else None,
            }
            yield row
            speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in row["frames_per_second"].items())
            ratios = ", ".join(f"{name} {value:.2f}" for name, value in row["tttvideo_over"].items())
            print(f"{width}x{height} as {row['read_as']}: frames/s {speeds}; tttvideo over {ratios}", flush=True)
        path.unlink()


# Late windows of long files


def late(folder: Path, rounds: int, minutes: float, word: str = "") -> Iterator[Row]:
    frames = round(minutes * 60 * RATE)
    kinds = {(kind.name, kind.container): kind for kind in KINDS}
    chosen = [kinds[name] for name in LATE if word.lower() in " ".join(name).lower()]
    for kind in filter(can_write, chosen):
        path = write(kind, folder, frames)
        wanted = requests(frames)["late window"]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in installed("pyav", "tttvideo, first")}
        for turn in range(rounds + 1):
            for name, tries in runs.items():
                tries.append(_late(name, path, wanted))
            if not turn:  # what tttvideo learns of a file while it reads it whole, it keeps
                with open_video(path) as video:
                    for _ in video.stream():
                        pass
        row: dict[str, Any] = {"kind": kind.name, "container": kind.container, "frames": frames, "readers": {}}
        for name, tries in runs.items():
            first, *again = tries
            row["readers"][name] = {
                "first_open_seconds": first["open"],
                "first_window_seconds": first["window"],
                "open_seconds": statistics.median(t["open"] for t in again),
                "window_seconds": statistics.median(t["window"] for t in again),
                "wrong": max(t["wrong"] for t in tries),
            }
        yield row
        _print_late(row)
        path.unlink()


def _late(name: str, path: Path, wanted: Sequence[int]) -> dict[str, Any]:
    begun = time.process_time()
    try:
        with READERS[name](path, None) as read:
            opened = time.process_time()
            frames = read(wanted)
            done = time.process_time()
    except Exception as error:  # another library's
        return {"open": 0.0, "window": time.process_time() - begun, "wrong": len(wanted), "error": str(error)}
    painted = [number % 2**BITS for number in wanted]
    return {"open": opened - begun, "window": done - opened, "wrong": wrong(numbers(frames), painted)}


def _print_late(row: dict[str, Any]) -> None:
    def shown(r: dict[str, Any]) -> str:
        first, later = (
            f"{1e3 * r[p + 'open_seconds']:.0f} + {1e3 * r[p + 'window_seconds']:.0f}" for p in ("first_", "")
        )
        return f"{first}, {later} ms" + (f" ({r['wrong']} wrong)" if r["wrong"] else "")

    parts = [f"{name} {shown(speeds)}" for name, speeds in row["readers"].items()]
    print(f"{row['kind']} .{row['container']}, opening + window, first and later: {'; '.join(parts)}", flush=True)


# Memory


def memory(folder: Path, videos: int) -> Iterator[Row]:
    clip = folder / "clip.mp4"
    write(next(k for k in KINDS if k.name == "H.264, B-frames"), folder, 50).rename(clip)
    many = folder / "many"
    many.mkdir()
    for i in range(videos):
        shutil.copyfile(clip, many / f"{i}.mp4")
    for name in installed("torchcodec approximate", "tttvideo, first"):
        command = [sys.executable, "-m", "benchmarks.input", "--hold", name, str(many)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"memory of {name}: {done.stderr.strip().splitlines()[-1]}")
            continue
        row = {"reader": name, "megabytes": json.loads(done.stdout)}
        yield row
        held = ", ".join(f"{count} videos {size:.0f} MB" for count, size in row["megabytes"].items())
        print(f"memory of {name}: {held}", flush=True)


def hold(name: str, folder: Path) -> dict[int, float]:
    """Resident megabytes after so many videos, beyond those after the first."""
    paths = sorted(folder.iterdir())
    marks = {10, len(paths) // 10, len(paths) // 4, len(paths) // 2, len(paths)}
    memory: dict[int, float] = {}
    for count, path in enumerate(paths, 1):
        with READERS[name](path, SMALL) as read:
            read(None)
        if count in marks:
            with open("/proc/self/statm") as file:
                memory[count] = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    return memory


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--videos", type=int, default=1000, help="for the memory")
    parser.add_argument("--minutes", type=float, default=10, help="length of the long files")
    parser.add_argument("--kind", default="", help="long files whose codec or container has this word in it")
    parser.add_argument("--only", choices=("clips", "late", "memory"), default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--hold", nargs=2, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if args.hold:
        print(json.dumps(hold(args.hold[0], Path(args.hold[1]))))
        return
    settings = {"rounds": args.rounds, "videos": args.videos, "minutes": args.minutes}
    results: dict[str, Any] = {"about": about(), "settings": settings, "readers": installed()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TTTVIDEO_INDEX"] = str(folder / "index")  # nothing is known, and nothing is left behind
        parts = {
            "clips": lambda: clips(folder, args.rounds),
            "late": lambda: late(folder, args.rounds, args.minutes, args.kind),
            "memory": lambda: memory(folder, args.videos),
        }
        for part, measured in parts.items():
            if args.only in (None, part):
                rows = results[part] = []
                for row in measured():
                    rows.append(row | {"load": round(os.getloadavg()[0], 1)})
                    if args.json:  # as they come: the whole takes a quarter of an hour on an idle machine
                        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
