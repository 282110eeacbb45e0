"""What a run of ``benchmarks.first_gpu`` says, and the table that ``fused: auto`` keeps to.

    python -m benchmarks.verify DIR/rows.jsonl [MORE.jsonl] [--write]

Prints verdicts, and every kernel with the reason why it is verified or not. ``--write``: writes
tttvideo/ttt/kernels/verified.json; kernels of other GPUs and other releases of Triton stay in it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from tttvideo.ttt.kernels.verified import TABLE, Verified

Row = dict[str, Any]

ACCURACY = ("smoke", "accuracy", "accuracy_float32")
"""Stages that measure errors."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true", help="write the table")
    options = parser.parse_args()
    rows = []
    for file in options.rows:
        if not file.is_file():
            parser.error(f"there is no file {file}")
        rows += [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    print("\n".join(verdicts(rows)))
    try:
        verified, refused = verify(rows)
    except ValueError as error:
        parser.error(str(error))
    for row in verified:
        print(f"verified: {row}")
    for why in refused:
        print(f"not verified: {why}")
    if options.write:
        write(verified, TABLE)
        print(f"{TABLE}: {len(verified)} rows of this run")
    return 0


def verify(rows: list[Row]) -> tuple[list[Verified], list[str]]:
    """The table's rows, and sentences about what is not in it.

    Raises:
        ValueError: if the rows are those of a dry run, or do not say on which GPU and with which Triton they came.
    """
    if any(row.get("dry") for row in rows):
        raise ValueError("these are rows of a dry run, which says nothing about kernels; give those of a run on a GPU")
    about = next((row for row in rows if row.get("stage") == "versions" and "sm" in row), None)
    if about is None:
        raise ValueError("no row says which GPU and which Triton it was; run the stage versions, too")
    triton = ".".join(about["packages"]["triton"].split(".")[:2])
    accurate = [row for row in rows if row.get("stage") in ("smoke", "accuracy") and "mode" in row]
    timed = [row for row in rows if row.get("stage") == "beside_eager" and "mode" in row]
    verified, refused = [], []
    for key in dict.fromkeys(map(_key, accurate)):
        kernel, chunk, mode, dtype, dim = key
        mine = [r for r in accurate if _key(r) == key]
        around = [r for r in rows if "around" in r and r["dtype"] == dtype]
        # on tokens of another dtype, too: bytes of tokens are a small part of what the kernels take
        speed = [r for r in timed if (r["kernel"], r["chunk"], r["mode"], r["dim"]) == (kernel, chunk, mode, dim)]
        name = f"{kernel} {chunk} {mode}, heads of {dim}, tokens in {dtype}"
        missing = None if around else f"the kernels around the scan were not measured in {dtype}"
        if why := _wrong(mine + around) or missing or (None if speed else "was not timed beside the eager scan"):
            refused.append(f"{name}: {why}")
            continue
        corners = _faster_from(speed)
        if not corners:
            refused.append(f"{name}: not faster at the largest size that was measured")
        error = max(r["worst"][1] for r in mine)
        verified += [
            Verified(kernel, chunk, mode, dtype, about["sm"], triton, dim, programs, tokens, error, round(speedup, 2))
            for programs, tokens, speedup in corners
        ]
    return verified, refused


def _key(row: Row) -> tuple[str, str, str, str, int]:
    return row["kernel"], row["chunk"], row["mode"], row["dtype"], row["dim"]


def _wrong(rows: list[Row]) -> str | None:
    for row in rows:
        if "why" in row:
            return row["why"]
        if not row["within"]:
            return f"the error of {row['worst'][0]} is {row['worst'][1]:.1e}, above {row['bound']:.0e} ({row['shape']})"
        if not row["same_bits"]:
            return f"two runs gave different bits ({row['shape']})"
    return None


def _faster_from(rows: list[Row]) -> list[tuple[int, int, float]]:
    """(rows x heads, tokens, least speedup): sizes from which on every size that was measured was faster; none that
    another one covers."""
    corners: list[tuple[int, int, float]] = []
    for programs, tokens in sorted({(r["programs"], r["tokens"]) for r in rows}):
        beyond = [r.get("speedup", 0.0) for r in rows if r["programs"] >= programs and r["tokens"] >= tokens]
        covered = any(programs >= p and tokens >= t for p, t, _ in corners)
        if not covered and min(beyond) > 1:
            corners.append((programs, tokens, min(beyond)))
    return corners


def verdicts(rows: list[Row]) -> list[str]:
    """A line for each stage."""
    lines = []
    accurate = [r for r in rows if r.get("stage") in ACCURACY and "mode" in r]
    good = [r for r in accurate if r["within"] and r["same_bits"]]
    lines.append(f"accuracy: {len(good)} of {len(accurate)} within the bounds, with the same bits twice")
    around = [r for r in rows if "around" in r]
    lines.append(f"around the scan: {sum(r['within'] and r['same_bits'] for r in around)} of {len(around)} likewise")
    replays = [r for r in rows if r.get("stage") == "replays" and "same" in r]
    lines.append(f"replayed graphs: {sum(r['same'] for r in replays)} of {len(replays)} are the steps themselves")
    curves = {r["how"]: r["losses"] for r in rows if r.get("stage") == "training" and "losses" in r}
    for one, other in (("kernels", "eager"), ("eager", "cpu")):
        if one in curves and other in curves:
            pairs = list(zip(curves[one], curves[other], strict=False))
            apart = math.fsum(abs(a - b) for a, b in pairs) / math.fsum(b for _, b in pairs)
            lines.append(f"training, {one} beside {other}: {apart:.2%} apart over {len(pairs)} steps, last {pairs[-1]}")
    lines += [
        f"{row['stage']}: {json.dumps(row['summary'])}"
        for row in rows
        if row.get("stage") in ("cores", "layers") and "summary" in row
    ]
    failed = [r for r in rows if "why" in r and r.get("stage") not in ("cores", "layers")]
    lines += [f"{row.get('stage')} {row.get('part', '')}: {row['why']}" for row in failed]
    return lines


def write(verified: list[Verified], table: Path) -> None:
    """Rows of the same GPU and Triton are replaced."""
    kept = [Verified(**row) for row in json.loads(table.read_text(encoding="utf-8"))["rows"]]
    if verified:
        kept = [row for row in kept if (row.sm, row.triton) != (verified[0].sm, verified[0].triton)]
    rows = ",\n  ".join(json.dumps(row._asdict()) for row in sorted([*kept, *verified]))
    table.write_text('{"rows": [\n  ' + rows + "\n]}\n" if rows else '{"rows": []}\n', encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
