"""A line of loss against position says of which videos it is; a card, which figures are of the whole model."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from tttvideo.evaluation import position_sentence
from tttvideo.evaluation.bootstrap import Bootstrap
from tttvideo.evaluation.plots import plot_lines
from tttvideo.evaluation.position import position_protocols
from tttvideo.evaluation.report import _comparison_markdown, html, positions_figure
from tttvideo.evaluation.table import Condition, position_table
from tttvideo.export.folder import _eval_results, _figures

from ..test_printing import hostile_evaluation

CURVE = {
    "frames": [1.0, 2.0, 4.0, 8.0],
    "loss": [2.0, 1.5, 1.0, 2.5],
    "low": [1.9, 1.4, 0.9, 2.0],
    "high": [2.1, 1.6, 1.1, 3.0],
    "videos": [12, 12, 12, 3],
    "seeds": 1,
}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The figure that a function draws."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))

    def draw(plot, content):
        plot(tmp_path / "x.png", content)
        return figures[-1].axes[0]

    return draw


def test_the_end_of_a_line_is_drawn_as_of_fewer_videos(drawn):
    protocol = positions_figure({"series": {"A": CURVE}, "unit": "nats"})
    assert list(protocol["series"]) == ["A (n = 12)"]
    assert "dotted" in protocol["title"]
    axes = drawn(plot_lines, protocol)
    whole, end = axes.get_lines()
    assert (list(whole.get_xdata()), whole.get_linestyle()) == ([1, 2, 4], "-")
    assert list(end.get_xdata()) == [4, 8]
    assert end.get_linestyle() != "-"
    assert [text.get_text() for text in axes.texts] == ["n = 3"]
    alike = CURVE | {"videos": [12] * 4}
    axes = drawn(plot_lines, positions_figure({"series": {"A": alike}, "unit": "nats"}))
    assert len(axes.get_lines()) == 1
    assert not axes.texts


def test_the_sentence_compares_the_same_videos():
    sentence = position_sentence(CURVE)
    assert sentence == "2 after 1 frames, 1 after 4 (12 videos); of the 3 longest of them, 2.5 after 8"
    assert position_sentence(CURVE | {"videos": [12] * 4}) == "2 after 1 frames, 2.5 after 8 (12 videos)"


def test_a_comparison_counts_them_too(drawn):
    frames = [float(n) for n in range(1, 21)]
    losses = np.stack([np.where(np.arange(20) < 10 + 10 * (i == 0), 1.0 + i, np.nan) for i in range(4)])
    videos = [(f"{i}.mp4", "", "") for i in range(4)]
    tables = {"A": [position_table(Condition("data"), frames, videos, losses, {"unit": "nats"})]}
    protocols = position_protocols(tables, Bootstrap(50))
    table = _comparison_markdown({"protocols": protocols, "interval": "95 %", "notes": []})
    assert ", 1 of 4 videos" in table
    axes = drawn(plot_lines, protocols["position"])
    assert [text.get_text() for text in axes.texts] == ["n = 1"]


def test_controls_and_views_are_no_plain_results():
    evaluation = hostile_evaluation(["a", "b", "c", "d"])[0]
    (plain,) = evaluation.metrics["results"]
    rows = [plain, plain | {"control": "inner-rate-0", "top1": 0.125}, plain | {"views": "clips=2x3:32", "top1": 0.375}]
    metrics = evaluation.metrics | {"results": rows}
    table = _figures(metrics)
    assert "| all | dense, clips=2x3:32 | 0.375" in table
    assert "| all | dense, inner-rate-0 | 0.125" in table
    names = [result.metric_name for result in _eval_results([metrics], "video-classification")]
    assert names == ["top-1, all frames, dense", "top-1, all frames, dense, clips=2x3:32"]


def test_ceilings_are_mentioned_where_there_are_any():
    evaluation = hostile_evaluation(["a", "b", "c", "d"])[0]
    assert "ceiling" not in html(evaluation, {}).lower()
    rows = [evaluation.metrics["results"][0] | {"ceiling": 0.5}]
    bounded = evaluation._replace(metrics=evaluation.metrics | {"results": rows})
    assert "<th>ceiling</th>" in html(bounded, {})
