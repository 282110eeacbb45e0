"""One way from words and YAML to dataclasses: merging, help for every field, recipes."""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar

import pytest
from docstring_parser import parse as parse_docstring

from tests.helpers import ALL_CHUNKS, ALL_ENCODERS, ALL_INNER, ALL_MIXERS, ALL_OBJECTIVES, ALL_OPTIMIZERS
from tttvideo.arguments import ConfigError, read, to_yaml
from tttvideo.cli import COMMANDS, command_function, main, settings_class
from tttvideo.help import COLUMN, field_help
from tttvideo.mixers import Bidirectional
from tttvideo.recipes import comment, recipe, recipes
from tttvideo.tasks import Classification, Prediction
from tttvideo.training.arguments import parse
from tttvideo.training.config import RunConfig
from tttvideo.ttt import GLU, MLP, SGD, TTT, Linear, TokenCausal
from tttvideo.video.synthetic import SUITES


def dataclasses_in(value) -> dict[str, type]:
    if not dataclasses.is_dataclass(value):
        return {}
    classes = {type(value).__name__: type(value)}
    for field in dataclasses.fields(value):
        classes |= dataclasses_in(getattr(value, field.name))
    return classes


PARTS = [*ALL_INNER, *ALL_CHUNKS, *ALL_OBJECTIVES, *ALL_OPTIMIZERS, *ALL_MIXERS, *ALL_ENCODERS]
CLASSES = {
    name: cls
    for part in [*PARTS, RunConfig(), Classification(), Prediction()]
    for name, cls in dataclasses_in(part).items()
}


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_every_setting_has_help(cls):
    """The help is read from the docstring: a line wrapped at the wrong column makes the rest of it vanish."""
    entries = [entry for base in cls.__mro__ for entry in parse_docstring(base.__doc__ or "").params]
    helped = {entry.arg_name for entry in entries if entry.description}
    fields = {field.name for field in dataclasses.fields(cls)}
    assert fields - helped == set(), "no help"
    assert helped - fields - set(dir(cls)) == set(), "help of no field: a broken line, or a field that is gone"


def test_train_help_says_what_each_setting_is(capsys):
    with pytest.raises(SystemExit) as done:
        parse(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    for words in ("--optimizer.lr ", "learning rate at the top of the schedule", "strength of the hue jitter"):
        assert words in text


def mixer(*words) -> object:
    return parse(list(words))[0].model.backbone.mixer


KEY = "--model.backbone.mixer"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((f"{KEY}.inner", "Linear"), TTT(inner=Linear())),
        ((f"{KEY}.heads", "2", KEY, "TTT"), TTT(heads=2)),  # the same class keeps what was set
        (
            (f"{KEY}.optimizer", "Momentum", f"{KEY}.optimizer", "SGD", f"{KEY}.optimizer.clip", "2"),
            TTT(optimizer=SGD(clip=2.0)),
        ),
        ((f"{KEY}.optimizer", "null", f"{KEY}.optimizer", "Momentum"), None),
        ((f"{KEY}={{class_path: TTT, init_args: {{heads: 2}}}}", f"{KEY}.inner", "GLU"), TTT(heads=2, inner=GLU())),
        (
            (KEY, "Bidirectional", f"{KEY}.mixer.chunk", "TokenCausal", f"{KEY}.mixer.chunk.tokens", "8"),
            Bidirectional(TTT(chunk=TokenCausal(8))),
        ),
        ((f"{KEY}.inner", "tttvideo.ttt.inner.mlp.MLP"), TTT()),  # as old config.yaml files name it
    ],
)
def test_later_words_win_and_another_class_starts_afresh(words, expected):
    if expected is None:
        with pytest.raises(ConfigError, match=r"optimizer must be one of .*SGD.*, not null"):
            mixer(*words)
    else:
        assert mixer(*words) == expected


def test_null_then_a_class_of_a_nested_setting():
    """`null` clears a setting that may be absent; a class after it starts from its own defaults."""

    @dataclasses.dataclass(frozen=True)
    class Outer:
        """Outer.

        Args:
            part: a part.
        """

        part: MLP | None = dataclasses.field(default_factory=lambda: MLP(expansion=7))

    def outer(*words):
        return read(Outer, words, prog="x")[0].part

    assert outer() == MLP(expansion=7)
    assert outer("--part", "null") is None
    assert outer("--part", "null", "--part", "MLP") == MLP()
    assert outer("--part.expansion", "2") == MLP(expansion=2)
    with pytest.raises(ConfigError, match=r"unknown setting part\.expansion: part is null and has no settings"):
        outer("--part", "null", "--part.expansion", "2")


@pytest.mark.parametrize(
    ("words", "size", "trackers"),
    [
        (["--data.size", "32,48"], (32, 48), ("tensorboard",)),
        (["--data.size", "[32, 48]"], (32, 48), ("tensorboard",)),
        (["--trackers", "wandb,tensorboard"], (64, 64), ("wandb", "tensorboard")),
        (["--trackers", "wandb"], (64, 64), ("wandb",)),
        (["--trackers", "[]"], (64, 64), ()),
    ],
)
def test_lists_on_the_command_line(words, size, trackers):
    config = parse(words)[0]
    assert (config.data.size, config.trackers) == (size, trackers)


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_a_recipe_is_found_by_name_and_survives_the_round_trip(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no configs/ here
    config, text = parse(["--config", path.stem])
    (tmp_path / "again.yaml").write_text(text)
    assert parse(["--config", "again.yaml"]) == (config, text)
    assert to_yaml(config) == text
    assert "config" in comment(path)
    assert recipe(path.stem) == path


def test_a_file_goes_before_a_recipe_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").write_text("seed: 5\n")
    assert parse(["--config", "folder.yaml"])[0].seed == 5
    assert parse(["--config", "folder"])[0].data.max_frames == 512
    with pytest.raises(ConfigError, match="folders does not exist; the recipes are demo, folder"):
        parse(["--config", "folders"])


def test_mistakes_name_the_file_or_none(tmp_path):
    (tmp_path / "c.yaml").write_text("optimizer: {lr: fast}\n")
    with pytest.raises(ConfigError, match=r"optimizer\.lr must be float, not 'fast' \(in .*c\.yaml\)"):
        parse(["--config", str(tmp_path / "c.yaml")])
    with pytest.raises(ConfigError, match=r"optimizer\.lr must be float, not 'fast'$"):
        parse(["--optimizer.lr", "fast"])
    with pytest.raises(ConfigError, match=r"--seed needs a value"):
        parse(["--seed", "--optimizer.lr", "1"])
    with pytest.raises(ConfigError, match=r"mixer: 'tttvideo.ttt.MLP' is not a dataclass derived from Mixer"):
        parse([KEY, "tttvideo.ttt.MLP"])


def test_a_setting_without_a_default_must_be_given():
    @dataclasses.dataclass(frozen=True)
    class Needs:
        """Needs.

        Args:
            rank: a number.
        """

        rank: int

    assert read(Needs, ["--rank", "3"], prog="x")[0] == Needs(3)
    with pytest.raises(ConfigError, match=r"x needs --rank; see x --help"):
        read(Needs, [], prog="x")


@dataclasses.dataclass(frozen=True)
class Words:
    """A command.

    Attributes:
        first: a word.
        others: words.
        names: words of their own.
        files: words, one each time.
        size: a list.
        fast: a flag.
        slow: a flag that is on.
        limit: a number, or none.
    """

    positional: ClassVar = ("first", "others")
    several: ClassVar = ("names",)
    repeated: ClassVar = ("files",)

    first: str
    others: tuple[str, ...]
    names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    size: tuple[int, ...] = (1,)
    fast: bool = False
    slow: bool = True
    limit: float | None = 1.0


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["a", "b,c", "[d]"], {"others": ("b,c", "[d]")}),
        (["--fast", "a", "b"], {"fast": True}),
        (["a", "--fast", "false", "b", "--no-slow"], {"slow": False}),
        (
            ["a", "b", "--names", "x,y", "null", "--size", "2,3", "--names=z"],
            {"names": ("x,y", "null", "z"), "size": (2, 3)},
        ),
        (["--files", "x,y", "a", "--files=z", "b"], {"files": ("x,y", "z")}),
        (["a", "--limit", "-1e-3", "b"], {"limit": -0.001}),
        (["a", "--limit", "null", "--", "-b", "--fast"], {"limit": None, "others": ("-b", "--fast")}),
        (["--config", "c.yaml", "--slow", "a", "b"], {"names": ("n",), "size": (7,)}),
        (["--config", "all.yaml"], {"first": "f", "others": ("o", "p"), "fast": True}),
    ],
)
def test_words_of_a_command(tmp_path, monkeypatch, words, changes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("first: z\nnames: [n]\nsize: [7]\nslow: false\n")
    (tmp_path / "all.yaml").write_text("first: f\nothers: [o, p]\nfast: true\n")
    config, text = read(Words, words, prog="x")
    assert config == dataclasses.replace(Words("a", ("b",)), **changes)
    (tmp_path / "again.yaml").write_text(text)
    assert read(Words, ["--config", "again.yaml"], prog="x") == (config, text)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_of_every_command_has_help(name, capsys, monkeypatch):
    """At 80 columns, without a line that is longer."""
    monkeypatch.setenv("COLUMNS", "80")
    function = command_function(name)
    suites = [[suite] for suite in SUITES] if name == "make-data" else [[]]
    for words in suites:
        with pytest.raises(SystemExit) as done:
            main([name, *words, "--help"])
        assert done.value.code == 0
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 80
        for line, below in itertools.pairwise(text.splitlines()):
            if line.startswith("  --") and len(line.split()) < 3:
                assert below.startswith(" " * COLUMN), f"{line} has no help"
    cls = settings_class(function)
    if cls is not None:
        fields = {field.name for field in dataclasses.fields(cls)}
        assert fields == {key for key, words in field_help(cls).items() if words and key in fields}


def test_help_of_one_class_and_of_all_that_a_setting_takes(capsys):
    for words, expected in (
        ([f"{KEY}.help"], "LinearAttention "),
        ([f"{KEY}.help", "Attention"], f"{KEY}.window N"),
        ([f"{KEY}.inner.help", "GLU"], f"{KEY}.inner.expansion X"),
        (["--optimizer.help"], "--optimizer.lr X"),
    ):
        with pytest.raises(SystemExit):
            parse(words)
        assert expected in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"seed is a single value"):
        parse(["--seed.help"])
    with pytest.raises(ConfigError, match=r"unknown setting model\.bakbone; did you mean 'model\.backbone'"):
        parse(["--model.bakbone.help"])
