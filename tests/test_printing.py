"""Hostile names in everything that is shown or written: they never act, and they never break a file."""

import csv
import io
import json
import re
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tttvideo.evaluation.plots import plain, short
from tttvideo.evaluation.report import print_comparison, print_report, write_comparison, write_report
from tttvideo.evaluation.strata import Column
from tttvideo.export.folder import model_card
from tttvideo.printing import cell, from_cell, json_text, markdown, markdown_code, printable
from tttvideo.training.run_folder import RunFolder, Skipped

ACTING = "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]"
PIECES = ["\x1b[31m", "\x1b]0;t\x07", "\x9b2J", "\u202e", "\u2066", "\udce9", "\ud800", "\r", "\n", "\t", "\x00", "|"]
PIECES += [
    "=1+1",
    "@SUM(1)",
    "-2+3",
    "+1",
    "<script>",
    "[red]",
    "$x$",
    "`",
    "'",
    '"',
    ",",
    ";",
    "&amp;",
    "é",
    "שלום",
    "👍🏽",
    "\u200d",
    "\ufe0f",
    "می\u200cخواهم",
    "\U000e0041",
    "\U0001d173",
]
names = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=5).map("".join)
names = names.filter(lambda name: not re.search("[\ud800-\udbff][\udc00-\udfff]", name))
"""Names of files, classes and columns that somebody else chose. (JSON takes two halves of a pair for one character.)"""
QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "phases": (Phase.explicit, Phase.generate)}
"""Reports with figures: a failing example is shown as it was found."""


@settings(deadline=None)
@given(names)
@example("=cmd|'/C calc'!A0")
@example("\u202egnp.exe")
def test_printable_text_does_not_act_and_cells_are_not_run(name):
    shown = printable(name)
    assert not re.search(ACTING, shown)
    assert "\n" not in shown
    assert printable(shown) == shown
    shown.encode("utf-8")
    written = cell(name)
    number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", name)
    assert number or not re.search(r"(^|;)[=+\-@＝＋－＠]", written)
    assert from_cell(written) == shown
    assert json.loads(json_text([name])) == [name]
    assert not re.search(ACTING + "|\n.", json_text([name], indent=None))


def test_ordinary_names_and_numbers_stay_as_they_are():
    for name in ("a b.mp4", "日本語/é.mp4", "emoji 👩‍👧.mp4", "1", "-3.5", "+1e-4", "x=1", "שלום"):
        assert printable(name) == name
        assert cell(name) == name
    assert cell(-3.5) == -3.5
    assert cell(None) is None
    assert cell("=1+1") == "'=1+1"
    assert cell("a;=1+1") == "a;'=1+1"
    assert printable("a\udce9\n\x1b") == r"a\xe9\n\x1b"


def test_what_has_no_picture_is_shown_but_where_it_spells_a_word():
    for name in (
        "می\u200cخواهم",
        "क\u094d\u200dष",
        "👩\u200d👧",
        "👁\ufe0f\u200d🗨\ufe0f",
        "1\ufe0f\u20e3",
        "❤\ufe0f",
        "葛\U000e0100",
    ):
        assert printable(name) == name
    for name in (
        "ca\u200ct",
        "ca\u200dt",
        "می\u200c",
        "\u200d👧",
        "ca\u00adt",
        "cat\ufe0f",
        "a\u2062b",
        "a\U000e0041b",
        "\u3164",
    ):
        assert re.search(r"\\(x|u|U000)[0-9a-f]{2,5}", printable(name)), ascii(name)
        assert json.loads(json_text([name])) == [name]
    unshown = [
        chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) == "Cf" and printable(f"a{chr(n)}b")[1] != "\\"
    ]
    assert (
        "".join(unshown) == "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
    )  # signs that are seen


class Page(HTMLParser):
    """What a browser would run."""

    def __init__(self):
        super().__init__()
        self.acting = []
        self.text = []

    def handle_starttag(self, tag, attributes):
        self.acting += [tag] if tag in ("script", "iframe", "object") else []
        self.acting += [name for name, value in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


def hostile_evaluation(names):
    """An evaluation with these names in every place that a user's data fills."""

    from tests.evaluation.small import small_model
    from tttvideo.evaluation.reading import Plan, fill
    from tttvideo.evaluation.scoring import Answer, Answers
    from tttvideo.evaluation.settings import all_settings
    from tttvideo.video.index import Index, Video
    from tttvideo.video.sampling import parse_sampling
    from tttvideo.video.views import Whole

    classes = list(dict.fromkeys([names[0], names[1], "plain"]))
    videos = [Video(f"{name}/{i}.mp4", i % len(classes), None, None, None) for i, name in enumerate(names)]
    index = Index(videos, classes, False, names[0], f"by {names[1]}")
    setting = all_settings([None], [parse_sampling("dense")], [Whole()], [])
    scores = [
        Answer(i, 0, None if i == 0 else [float(j == i % 2) for j in range(len(classes))], 4, "" if i else names[2])
        for i in range(len(videos))
    ]
    context = {"checkpoint": names[0], "data": names[1], "split": names[2], "weights_sha256": "0", "device": names[0]}
    context |= {"selection": {"step": names[0], "rule": names[1], "split": names[2]}, "streaming": None}
    context |= {"processes": 1, "clip_frames": None}
    columns = [Column(names[1] or "c", [names[i % 3] or "x" for i in range(len(videos))], 4)]
    model = small_model(classes)
    plan = Plan(setting, columns, [{} for _ in videos])
    return fill(context, [Answers(scores, [], [names[0]])], plan, index, model, [names[2]]), model


@settings(max_examples=2, **QUICK)
@given(st.lists(names.filter(bool), min_size=4, max_size=4))
@example(["\x1b[31mred\x1b[0m", "=cmd|'/C calc'!A0", "\u202e<script>alert(1)</script>", "a\udce9\n|`x`[b]"])
@example(["a", "<script>", "b", "c"])  # as the name of the folder, in the lines of code that load the model
def test_no_name_acts_in_any_report(tmp_path_factory, chosen):
    out = tmp_path_factory.mktemp("reports")
    found, model = hostile_evaluation(chosen)
    screen = io.StringIO()
    print_report(found, Console(file=screen, width=200, color_system=None))
    assert not re.search(ACTING, screen.getvalue())
    write_report(found, out)
    page = Page()
    text = (out / "report.html").read_text(encoding="utf-8")
    page.feed(text)
    assert not page.acting
    assert not re.search(ACTING, text)
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        content = file.read()
    assert not re.search(ACTING, content)
    for row in csv.reader(io.StringIO(content)):
        assert not [value for value in row if re.match(r"[=@\t\r]|[+-](?![\d.])", value)]
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["labels"] == model.labels
    assert not re.search(ACTING, (out / "metrics.json").read_text(encoding="utf-8"))

    from tttvideo.origin import Checkpoint

    source = Checkpoint(out, None, "0", found.metrics["selection"], {}, None, None, {}, "Classification")
    card = model_card(model, chosen[0], chosen[1], source, [found.metrics])
    assert not re.search(ACTING, card)
    text = re.sub(r"^```.*?^```$", "", card.split("---\n", 2)[2], flags=re.MULTILINE | re.DOTALL)  # without code
    assert "<script" not in re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)


@settings(max_examples=3, **QUICK)
@given(st.lists(names.filter(bool), min_size=3, max_size=3, unique_by=printable))
def test_no_name_acts_in_a_comparison_or_a_list_of_skipped_videos(tmp_path_factory, chosen):
    out = tmp_path_factory.mktemp("comparison")
    line = {"run": chosen[0], "control": "", "seeds": 1, "mean": [0.5], "low": [0.4], "high": [0.6], "n": [3]}
    protocol = {"title": chosen[1], "x_label": chosen[2], "x": [chosen[0]], "numeric": False, "joined": False}
    protocol |= {"series": {chosen[0]: line}, "ceiling": [None], "chance": None}
    compared = {"protocols": {chosen[1]: protocol}, "interval": "95 %", "notes": [chosen[2]]}
    screen = io.StringIO()
    print_comparison(compared, Console(file=screen, width=200, color_system=None))
    write_comparison(compared, out)
    for text in (screen.getvalue(), (out / "compare.md").read_text(), (out / "compare.json").read_text()):
        assert not re.search(ACTING, text)
    assert "<script" not in (out / "compare.md").read_text()

    folder = RunFolder(str(out), resume=True)
    videos = [Skipped(name, chosen[0]) for name in chosen]
    assert folder.skip("train", videos) == videos
    assert RunFolder(str(out), resume=True).skip("train", videos) == []  # read back, they are known
    with (out / "skipped.csv").open(newline="", encoding="utf-8") as file:
        content = file.read()
    assert not re.search(ACTING.replace("\x0b-\x1f", "\x0b\x0c\x0e-\x1f"), content)


@settings(deadline=None)
@given(names)
def test_markdown_and_figures_show_what_a_name_is(name):
    assert not re.search(ACTING, markdown(name) + markdown_code(name) + plain(name) + short(name))
    assert "<" not in markdown(name)
    assert not re.search(r"(?<!\\)\|", markdown(name) + markdown_code(name))
    code = markdown_code(name)
    fence = re.match("`+", code)[0]
    assert code.endswith(fence)
    assert fence not in re.split(f"^{fence}|{fence}$", code)[1]


@pytest.mark.parametrize("name", ["a\x1b[31mb", "\u202eb", "c\udce9"])
def test_error_lines_are_printable(name, capsys):
    from tttvideo.cli import main

    assert main(["classify", name, "clip.mp4"]) == 2
    assert main(["compare", name, "--out", "x"]) == 2
    assert main([name]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == said.count("\n") == 3
    assert not re.search(ACTING, said)
