"""The entry for the first minutes on a GPU goes through without one; what its rows say, and what becomes of them."""

import json
import subprocess
import sys

import pytest

from benchmarks import first_gpu, first_gpu_stages, verify
from tttvideo.ttt.kernels.verified import BOUNDS, Verified


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def check(rows) -> None:
    """What the rows of a dry run say."""
    assert [row["why"] for row in rows if "why" in row] == []
    accurate = [row for row in rows if row["stage"] in verify.ACCURACY and "mode" in row]
    assert accurate
    assert all(row["within"] and row["same_bits"] for row in rows if "around" in row)
    assert all(row["within"] and row["same_bits"] for row in accurate)
    assert all(0 < row["worst"][1] <= BOUNDS[row["mode"]] for row in accurate)
    with pytest.raises(ValueError, match="rows of a dry run"):
        verify.verify(rows)


@pytest.mark.parametrize("stand_in", [False, True])
def test_a_stage_runs_dry(stand_in, tmp_path, monkeypatch):
    """In this process, which interprets kernels; and where that cannot be, by the eager scan in their place."""
    if stand_in:
        monkeypatch.setattr(first_gpu_stages, "not_interpreted", lambda: "no interpreter")
    monkeypatch.setattr(sys, "argv", ["first_gpu_stages", "smoke", "0", str(tmp_path), "240", "--dry"])
    first_gpu_stages.main()
    check(rows_of(tmp_path))


@pytest.mark.slow
def test_it_runs_dry(tmp_path, capfd):
    stages = [stage.name for stage in first_gpu.STAGES if stage.name != "files"]
    assert first_gpu.main(["--budget", "550", "--out", str(tmp_path), "--dry", "--only", ",".join(stages)]) == 0
    rows = rows_of(tmp_path)
    check(rows)
    assert list(dict.fromkeys(row["stage"] for row in rows)) == stages
    assert "The time was up" not in capfd.readouterr().out


WORK = """
import sys, time
from benchmarks.first_gpu import write
from pathlib import Path
stage, part, out, limit = sys.argv[1:5]
write(Path(out), {"stage": stage, "part": int(part)})
if part == "1":
    sys.exit(3)
if part == "2":
    time.sleep(100)
"""


def test_a_part_that_hangs_or_breaks_costs_its_own_rows(tmp_path, monkeypatch, capfd):
    """One is ended at its limit; what the time did not allow is named, with the command for it."""
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **given: popen([sys.executable, "-c", WORK, *command[3:]], **given)
    )
    monkeypatch.setattr(first_gpu, "LEAST", 0.0)
    stages = (("a", 4, 2, 3.0, 4), ("b", 3, 3, 600.0, 3), ("c", 1, 1, 9.0, 1))
    monkeypatch.setattr(first_gpu, "STAGES", tuple(first_gpu.Stage(*one) for one in stages))
    assert first_gpu.main(["--budget", "10", "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path)
    assert {row["part"] for row in rows if row["stage"] == "a" and "why" not in row} == {0, 1, 2, 3}
    why = {(row["stage"], row["part"]): row["why"] for row in rows if "why" in row and "part" in row}
    assert why["a", 1] == why["b", 1] == "its process ended with exit code 3; see log.txt"
    assert why["a", 2] == "ended after 3 seconds, its limit"
    assert why["b", 2].startswith("ended after ")
    assert [row["why"] for row in rows if row["stage"] == "c"] == ["the time was up before it was begun"]
    said = capfd.readouterr().out
    assert f"the rest: python -m benchmarks.first_gpu --budget 10 --out {tmp_path} --only b,c" in said


def test_an_unknown_stage_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        first_gpu.main(["--budget", "9", "--out", str(tmp_path), "--only", "speed"])
    assert ended.value.code == 2
    assert "no stage is called speed; there are versions, smoke" in capsys.readouterr().err


ABOUT = {"stage": "versions", "sm": 90, "packages": {"triton": "3.6.0"}}
GOOD = {
    **{"stage": "accuracy", "kernel": "mlp", "chunk": "frame", "mode": "bf16", "dim": 64},
    **{"dtype": "bfloat16", "shape": "frames of 196"},
    **{"worst": ["out", 0.002], "bound": 5e-2, "within": True, "same_bits": True},
}


AROUND = {key: GOOD[key] for key in ("stage", "dtype", "worst", "bound", "within", "same_bits")} | {"around": "heads"}


def timed(programs, tokens, speedup, mode="bf16"):
    about = {"stage": "beside_eager", "kernel": "mlp", "chunk": "frame", "mode": mode, "dim": 64}
    return about | {"programs": programs, "tokens": tokens, "speedup": speedup}


TIMED = [timed(12, 392, 0.8), timed(12, 1568, 3.0), timed(96, 392, 2.0), timed(96, 1568, 9.0)]
FOUND = Verified("mlp", "frame", "bf16", "bfloat16", 90, "3.6", 64, 12, 1568, 0.002, 3.0)


def test_what_is_right_and_faster_is_verified_from_where_it_is_faster():
    verified, refused = verify.verify([ABOUT, AROUND, GOOD, {**GOOD, "worst": ["W", 0.001]}, *TIMED])
    assert verified == [FOUND, FOUND._replace(programs=96, tokens=392, speedup=2.0)]
    assert refused == []


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([GOOD, {**GOOD, "within": False, "worst": ["out", 0.2]}, *TIMED], "the error of out is 2.0e-01, above 5e-02"),
        ([GOOD, {**GOOD, "same_bits": False}, *TIMED], "two runs gave different bits"),
        ([GOOD, {**GOOD, "within": False, "why": "OutOfResources: shared"}, *TIMED], "OutOfResources: shared"),
        ([GOOD], "was not timed beside the eager scan"),
        ([GOOD, {**AROUND, "why": "OutOfResources: registers"}, *TIMED], "OutOfResources: registers"),
        ([GOOD, {**AROUND, "same_bits": False, "shape": "12 heads"}, *TIMED], "different bits (12 heads)"),
        ([GOOD, *TIMED, timed(96, 65536, 0.9)], "not faster at the largest size"),
        ([GOOD, timed(12, 392, 2.0, "tf32")], "was not timed"),
    ],
)
def test_what_is_wrong_or_slower_is_not_verified_and_why(rows, why):
    verified, refused = verify.verify([ABOUT, AROUND, *rows])
    assert verified == []
    assert len(refused) == 1
    assert why in refused[0]


def test_nothing_is_verified_where_the_kernels_around_were_not_measured():
    _, refused = verify.verify([ABOUT, {**AROUND, "dtype": "float32"}, GOOD, *TIMED])
    assert refused == [
        "mlp frame bf16, heads of 64, tokens in bfloat16: the kernels around the scan were not measured in bfloat16"
    ]


def test_the_table_keeps_what_other_devices_said(tmp_path):
    table = tmp_path / "verified.json"
    other = FOUND._replace(sm=80)
    table.write_text('{"rows": []}')
    for written in ([other], [FOUND]):
        verify.write(written, table)
    assert [Verified(**row) for row in json.loads(table.read_text())["rows"]] == [other, FOUND]
    verify.write([FOUND._replace(speedup=1.5)], table)
    assert [row["speedup"] for row in json.loads(table.read_text())["rows"]] == [3.0, 1.5]


def test_rows_without_a_device_verify_nothing(tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(GOOD) + "\n")
    monkeypatch.setattr(sys, "argv", ["verify", str(file)])
    with pytest.raises(SystemExit) as ended:
        verify.main()
    assert ended.value.code == 2
    assert "no row says which GPU" in capsys.readouterr().err
