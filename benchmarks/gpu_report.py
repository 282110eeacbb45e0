"""The GPU benchmark's rows as a summary, a table and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Row = dict[str, Any]


def per_token(rows: list[Row], shape: str, layer: str, what: str) -> dict[int, float]:
    """Seconds per token, by length."""
    mine = [r for r in rows if (r["shape"], r["layer"], r["what"]) == (shape, layer, what) and r["seconds"]]
    return {r["length"]: r["seconds"] / (r["batch"] * r["length"]) for r in mine}


def summary(rows: list[Row], rate: float) -> Row:
    """What the rows come to; ``rate`` in FLOPs per second. None where one of the two was not measured.

    All of frames at the video shape but ``token_causal_train_over_plain_scan``, of chunks of 16 tokens at the paper's;
    the authors' scan (``plain_scan``) has chunks of 16 tokens at both. Once as the kernels are by default (products
    read tf32), and under names with ``_bf16`` where their products read bfloat16.
    """
    bf16 = _summary(rows, rate, "ttt_mlp_bf16")
    return _summary(rows, rate, "ttt_mlp") | {f"{name}_bf16": value for name, value in bf16.items()}


def _summary(rows: list[Row], rate: float, layer: str) -> Row:
    def crossover(what: str) -> int | None:
        mine, flash = per_token(rows, "video", layer, what), per_token(rows, "video", "attention", what)
        faster = [n for n in sorted(mine) if n in flash and mine[n] < flash[n]]
        return faster[0] if faster else None

    def over(shape: str) -> float | None:
        mine, plain = per_token(rows, shape, layer, "train"), per_token(rows, shape, "plain_scan", "train")
        return max((plain[n] / mine[n] for n in mine if n in plain), default=None)

    frames, flash = per_token(rows, "video", layer, "train"), per_token(rows, "video", "attention", "train")
    at = [n for n in frames if n in flash and n >= 131072 // 784 * 784]
    long = [frames[n] for n in sorted(frames) if n >= 8192 // 784 * 784]
    # per token and head of 64: 8 products of 64 x 256 forwards, twice that backwards
    flops = 3 * 8 * 2 * 64 * 256 * 12
    return {
        "train_over_plain_scan": over("video"),
        "token_causal_train_over_plain_scan": over("paper"),
        "forward_crossover_tokens_vs_flash": crossover("forward"),
        "train_crossover_tokens_vs_flash": crossover("train"),
        "train_over_flash_128k": flash[at[0]] / frames[at[0]] if at else None,
        "fraction_of_matmul_rate_frame_chunk": max((flops / t / rate for t in frames.values()), default=None),
        "time_per_token_spread_from_8k": max(long) / min(long) if long else None,
    }


def table(rows: list[Row]) -> str:
    """Nanoseconds per token (decoding: microseconds per step), a line for each layer, lengths side by side."""
    lines = []
    for shape in dict.fromkeys(r["shape"] for r in rows):
        mine = [r for r in rows if r["shape"] == shape]
        for what in dict.fromkeys(r["what"] for r in mine if r["what"] not in ("profile", "rest")):
            some = [r for r in mine if r["what"] == what]
            lengths = sorted({r["length"] for r in some})
            unit = "microseconds per step" if what.startswith("decode") else "nanoseconds per token"
            lines += ["", f"{shape}, {what}: {unit}", " " * 22 + "".join(f"{n:>11,}" for n in lengths)]
            for layer in dict.fromkeys(r["layer"] for r in some):
                by_length = {r["length"]: r for r in some if r["layer"] == layer}
                cells = (f"{_cell(by_length[n]):>11}" if n in by_length else " " * 11 for n in lengths)
                lines.append(f"{layer:22}" + "".join(cells))
        skipped = {(r["layer"], r["why"]): None for r in mine if r["seconds"] is None}
        lines += [f"  {layer}: {why}" for layer, why in skipped]
        for row in mine:
            lines += _profile(row) if "kernels" in row else []
    return "\n".join(lines)


def _profile(row: Row, most: int = 8) -> list[str]:
    """Where a training step's time goes."""
    lines = [
        "",
        f"{row['shape']}, {row['layer']}: a training step of {row['batch']} x {row['length']:,} tokens by kernel",
    ]
    for kernel in row["kernels"][:most]:
        share = kernel["seconds"] / row["seconds"] if row["seconds"] else 0.0
        lines.append(
            f"{kernel['seconds'] * 1e6:12,.0f} us {share:5.0%} {kernel['calls']:7,.1f} x {kernel['name'][:80]}"
        )
    return lines


def _cell(row: Row) -> str:
    if row["seconds"] is None:
        return "-"
    if row["what"].startswith("decode"):
        return f"{row['seconds'] * 1e6:,.0f}"
    return f"{row['seconds'] / (row['batch'] * row['length']) * 1e9:,.1f}"


def plot(rows: list[Row], title: str, file: Path) -> None:
    """Time per token against length, forward and training step at both shapes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shapes, kinds = ("paper", "video"), ("forward", "train")
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex=True, layout="constrained")
    for line, shape in zip(axes, shapes, strict=True):
        for axis, what in zip(line, kinds, strict=True):
            for layer in dict.fromkeys(r["layer"] for r in rows if r["shape"] == shape):
                if seconds := per_token(rows, shape, layer, what):
                    style = "o-" if layer.startswith("ttt") else "s--"
                    axis.plot(list(seconds), [t * 1e9 for t in seconds.values()], style, ms=3, lw=1, label=layer)
            axis.set(xscale="log", yscale="log", title=f"{shape}, {what}", ylabel="ns per token", xlabel="tokens")
            axis.grid(alpha=0.3)
        line[1].legend(fontsize=7)
    figure.suptitle(title)
    figure.savefig(file, dpi=150)
    plt.close(figure)
