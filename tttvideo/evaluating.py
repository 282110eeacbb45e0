"""The commands that measure: evaluate, position, compare."""

from __future__ import annotations

import sys
from pathlib import Path

from .files import check_folder
from .measuring import CompareConfig, EvaluateConfig, PositionConfig
from .printing import printable


def evaluate(config: EvaluateConfig) -> int:
    from .evaluation import evaluate as measure
    from .evaluation import print_report, write_report
    from .origin import inspect_checkpoint

    run = inspect_checkpoint(config.checkpoint).run
    out = Path(config.out) if config.out else run
    if out is not None:
        check_folder(out)  # now: nobody wants to hear of it after hours of measuring
    result = measure(config, progress=sys.stderr.isatty())
    if result is not None:
        print_report(result)
        if out is None:
            print("not written to files: an export has no run folder, so give --out DIR for that")
        else:
            write_report(result, out)
            print(printable(f"written to {out}: report.html, metrics.json, predictions.csv and figures"))
    return 0


def position(config: PositionConfig) -> int:
    from .evaluation import position_sentence, positions, write_positions

    check_folder(Path(config.out))
    curves, arrays = positions(config)
    write_positions(curves, arrays, Path(config.out))
    for name, curve in curves["series"].items():
        print(printable(f"{name}: {position_sentence(curve)}"))
    for failure in curves["failures"]:
        print(printable(f"not read: {failure['path']}: {failure['reason']}"))
    print(printable(f"written to {config.out}: position.json, position.npz and position.png"))
    return 0


def compare(config: CompareConfig) -> int:
    from .evaluation import compare as compare_runs
    from .evaluation import print_comparison, write_comparison

    check_folder(Path(config.out))
    comparison = compare_runs(config)
    print_comparison(comparison)
    files = write_comparison(comparison, Path(config.out))
    print(printable(f"written to {config.out}: {', '.join(files)}"))
    return 0
