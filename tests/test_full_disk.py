"""A disk that fills up while results are written: one sentence with the file's name, and never half a set."""

import json
import os
import resource
from contextlib import contextmanager

import pytest

from tttvideo.cli import main
from tttvideo.evaluation.report import write_positions, write_report
from tttvideo.export import EXPORTED, ExportError, export

from .evaluation.small import small_model, small_run
from .test_printing import hostile_evaluation


@contextmanager
def room_for(size: int):
    """No file can grow beyond ``size`` bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


@pytest.fixture(scope="module")
def evaluation():
    return hostile_evaluation(["a", "b", "c", "d"])[0]


def test_an_evaluation_without_room_leaves_the_earlier_one(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    before = content(tmp_path)
    with room_for(100), pytest.raises(OSError, match=r"File too large: .*/metrics\.json'"):
        write_report(evaluation, tmp_path)
    assert content(tmp_path) == before


def test_an_evaluation_without_room_for_figures_keeps_its_numbers_and_nothing_older(evaluation, tmp_path):
    write_report(evaluation, tmp_path)
    later = evaluation._replace(metrics=evaluation.metrics | {"n_videos": 99})
    size = (tmp_path / "metrics.json").stat().st_size + 500
    assert (tmp_path / "accuracy_vs_frames.png").stat().st_size > size
    with room_for(size), pytest.raises(OSError, match=r"are there and complete.*accuracy_vs_frames\.png"):
        write_report(later, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["metrics.json", "predictions.csv"]
    assert json.loads((tmp_path / "metrics.json").read_text())["n_videos"] == 99
    write_report(evaluation, tmp_path)
    assert (tmp_path / "report.html").exists()


def test_a_figure_that_cannot_be_drawn_keeps_the_numbers(evaluation, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no font")

    monkeypatch.setattr("tttvideo.evaluation.figures.plot_confusion", fails)
    with pytest.raises(RuntimeError, match="no font"):
        write_report(evaluation, tmp_path)
    assert {"metrics.json", "predictions.csv"} <= set(os.listdir(tmp_path))
    assert "report.html" not in os.listdir(tmp_path)


def test_positions_and_exports_without_room(tmp_path):
    with room_for(10), pytest.raises(OSError, match=r"position\.json"):
        write_positions({"series": {}}, {}, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []

    run = small_run(tmp_path / "run", small_model(["a", "b"]))
    with room_for(5000), pytest.raises(ExportError, match=r"/model\.safetensors cannot be written \(File too large\)"):
        export(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    export(run, tmp_path / "export")
    before = content(tmp_path / "export")
    with room_for(5000), pytest.raises(ExportError, match="make room"):
        export(run, tmp_path / "export")
    assert content(tmp_path / "export") == before
    assert sorted(before) == sorted(EXPORTED)


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    run = small_run(tmp_path / "run", small_model(["a", "b"]))
    with room_for(5000):
        assert main(["export", str(run), "--out", str(tmp_path / "export")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
