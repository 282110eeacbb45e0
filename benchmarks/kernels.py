"""The kernels: their error through the interpreter, what they need of a GPU, and how fast they are on one.

    python -m benchmarks.kernels --interpret [--json FILE]   errors against the eager scan in float64, without a GPU
    python -m benchmarks.kernels --aot [--dims 64] [--sm 80,90] [--only WORDS] [--json FILE]    registers and memory
    python -m benchmarks.kernels --gpu [--only LAYER,LAYER] [--budget SECONDS] [--dry] [--json FILE]    times on a GPU

The JSON has ``rows`` and ``summary``; beside that of ``--gpu`` is a plot. That of ``--aot`` is written after every
configuration, and those that stand in it, of the same Triton, are not compiled again: what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    for name in ("interpret", "aot", "gpu"):
        what.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--dims", default="64", help="head dimensions to compile for, separated by commas")
    parser.add_argument("--sm", default="80,90", help="--aot: compute capabilities to compile for, by commas")
    parser.add_argument(
        "--only",
        default="",
        help="--gpu: layers, or shape:layer (video:ttt_mlp_core), by commas; --aot: words of the names, by commas",
    )
    parser.add_argument("--budget", type=float, default=450.0, help="--gpu: seconds")
    parser.add_argument("--dry", action="store_true", help="--gpu: the same way on a CPU, with figures of no meaning")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    only = [word for word in options.only.split(",") if word]
    # Triton decides when it is imported
    os.environ["TRITON_INTERPRET"] = "1" if options.interpret or options.dry else "0"
    from benchmarks import gpu, gpu_report  # after that
    from tttvideo.ttt.kernels.ahead import SHARED_MEMORY
    from tttvideo.ttt.kernels.choice import not_interpreted

    if options.interpret:
        if why := not_interpreted():
            parser.error(f"{why}; it can run none here")
        figures = interpret()
    elif options.aot:
        capabilities = [int(word) for word in options.sm.split(",")]
        if unknown := set(capabilities) - SHARED_MEMORY.keys():
            parser.error(f"--sm {unknown.pop()} is not known; there are {', '.join(map(str, SHARED_MEMORY))}")
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
        try:
            figures = ahead_of_time([int(dim) for dim in options.dims.split(",")], capabilities, options.json, only)
        except ValueError as error:
            parser.error(str(error))
    else:
        rows = options.json and options.json.with_suffix(".rows.jsonl")
        if rows:
            rows.parent.mkdir(parents=True, exist_ok=True)
            rows.unlink(missing_ok=True)
        try:
            gpu.chosen(options.dry, tuple(only))
        except ValueError as error:
            parser.error(str(error))
        figures = gpu.measure(options.dry, options.budget, rows, only)
        print(gpu_report.table(figures["rows"]))
    print(json.dumps(figures["summary"], indent=2), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
        if options.gpu:
            gpu_report.plot(figures["rows"], figures["summary"]["device"], options.json.with_suffix(".png"))


def interpret() -> Figures:
    """Outputs, states and all gradients of a few odd shapes."""
    from tests.ttt.kernels.cases import case, eager, fused, gradients, worst
    from tttvideo.ttt import MLP, SGD, Conv, ConvDepthwise, DotProduct, DWConv, FrameCausal, Linear, TokenCausal

    rows = []
    for model, chunk, frame, lengths, position in (
        (Linear(), TokenCausal(16), 1, (37, 5), (3, 9)),
        (MLP(), TokenCausal(16), 1, (37, 5), (3, 9)),
        (MLP(2), TokenCausal(32), 1, (65, 0), (31, 4)),
        (MLP(), FrameCausal(), 21, (63, 21), None),
        (MLP(), FrameCausal(), 70, (140,), None),
        (Linear(), FrameCausal(), 21, (63, 21), None),
        (Conv(), FrameCausal(), (3, 7), (63, 21), None),
        (ConvDepthwise(), FrameCausal(), (3, 7), (63, 21), None),
        (DWConv(), FrameCausal(), (3, 7), (63, 21), None),
    ):
        learning = {"objective": DotProduct(), "optimizer": SGD(clip=1.0)} if isinstance(model, DWConv) else {}
        one = case(model, chunk, lengths=lengths, position=position, frame=frame, **learning)
        error, whose = worst(gradients(fused, one), gradients(eager, one))
        rows.append({"model": str(model), "chunk": str(chunk), "frame": frame, "lengths": lengths, "error": error})
        print(f"{model} {chunk} rows of {lengths}: {error:.1e} ({whose})")
    return {
        "rows": rows,
        "summary": {"worst_relative_error": max(row["error"] for row in rows), "configurations": len(rows)},
    }


def ahead_of_time(dims: list[int], capabilities: list[int], file: Path | None, only: list[str]) -> Figures:
    """Compiles every configuration whose name has all words of ``only`` and that ``file`` does not have yet; a line
    each.

    Raises:
        ValueError: if ``file`` is of another Triton, or no name has these words.
    """
    import triton

    from tttvideo.files import write_text
    from tttvideo.ttt.kernels.ahead import SHARED_MEMORY, STACK, compiled, configurations

    rows: list[Figures] = []
    if file is not None and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["triton"] != triton.__version__:
            raise ValueError(f"{file} is of Triton {before['triton']}, and this is {triton.__version__}; name another")
        rows = before["rows"]
    everything = [(sm, one) for sm in capabilities for one in configurations(dims, sm)]
    chosen = [(sm, one) for sm, one in everything if all(word in one.name for word in only)]
    if not chosen:
        raise ValueError(f"No configuration's name has {' and '.join(only)}; one is {everything[0][1].name}")
    compiled_before = {(row["sm"], row["name"]) for row in rows}
    for sm, one in chosen:
        if (sm, one.name) in compiled_before:
            continue
        needs = compiled(one, sm)
        rows.append({"name": one.name, "kind": one.kind, "sm": sm, **needs._asdict()})
        flag = " TOO MUCH" if needs.shared > SHARED_MEMORY[sm] or needs.stack > STACK[one.kind] else ""
        print(
            f"sm_{sm} {one.name}: {needs.registers} registers, {needs.stack} B stack, {needs.shared} shared{flag}",
            flush=True,
        )
        if file is not None:
            write_text(file, json.dumps({"triton": triton.__version__, "rows": rows}, indent=1) + "\n")
    summary = {
        "configurations": len(rows),
        "worst_stack_bytes": {kind: max((r["stack"] for r in rows if r["kind"] == kind), default=0) for kind in STACK},
        "over_shared_memory": sum(row["shared"] > SHARED_MEMORY[row["sm"]] for row in rows),
        "over_stack": sum(row["stack"] > STACK[row["kind"]] for row in rows),
    }
    return {"triton": triton.__version__, "rows": rows, "summary": summary}


if __name__ == "__main__":
    main()
