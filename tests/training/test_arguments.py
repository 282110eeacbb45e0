"""Settings of exchangeable parts: short names, import paths, and what they keep when a part is exchanged."""

import sys

import pytest

from tttvideo.mixers import Attention, Bidirectional
from tttvideo.training.arguments import parse
from tttvideo.training.config import ConfigError
from tttvideo.ttt import MLP, TTT, Conv, Linear, Whole

YAML = """
model:
  backbone:
    mixer:
      class_path: TTT
      init_args:
        heads: 2
        inner: {inner}
"""


def mixer(tmp_path, inner, *words):
    file = tmp_path / "config.yaml"
    file.write_text(YAML.format(inner=inner))
    return parse(["--config", str(file), *words])[0].model.backbone.mixer


@pytest.mark.parametrize(("name", "inner"), [("MLP", MLP()), ("Linear", Linear()), ("Conv", Conv())])
def test_one_line_swaps_the_inner_model(tmp_path, name, inner):
    assert mixer(tmp_path, name) == TTT(inner=inner, heads=2)
    assert mixer(tmp_path, "MLP", "--model.backbone.mixer.inner", name) == TTT(inner=inner, heads=2)


def test_another_class_starts_from_its_own_defaults(tmp_path):
    """Conv and MLP both have an expansion, with different defaults."""
    assert Conv().expansion != MLP().expansion
    words = ("--model.backbone.mixer.inner.expansion", "3")
    assert mixer(tmp_path, "MLP", *words).inner == MLP(expansion=3)
    assert mixer(tmp_path, "Conv", *words).inner == Conv(expansion=3)
    assert mixer(tmp_path, "MLP", "--model.backbone.mixer", "Attention") == Attention()


def test_an_inner_model_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "mypkg.py").write_text(
        "from dataclasses import dataclass\n"
        "from tttvideo.ttt.inner import InnerModel, MapShape\n"
        "@dataclass(frozen=True)\n"
        "class MyInner(InnerModel):\n"
        "    rank: int = 2\n"
        "    def maps(self, dim):\n"
        "        return {'down': MapShape(dim, self.rank), 'up': MapShape(self.rank, dim)}\n"
        "    def __call__(self, x, affine, grid):\n"
        "        return affine('up', affine('down', x))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    found = mixer(tmp_path, "mypkg.MyInner", "--model.backbone.mixer.inner.rank", "5")
    assert type(found.inner).__name__ == "MyInner"
    assert found.inner.rank == 5
    assert found.build(8).weights["down_weight"].shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("text", "words", "root", "list_"),
    [
        ("root: videos", ["--data.list", "a.csv"], None, "a.csv"),
        ("root: videos", ["--data.list=a.csv"], None, "a.csv"),
        ("root: videos", ["--data.list", "a.csv", "--data.root", "clips"], "clips", "a.csv"),
        ("list: b.csv", ["--data.root", "clips"], "clips", None),
        ("{list: b.csv, root: videos}", ["--data.root", "clips"], "clips", "b.csv"),
        ("root: videos", ["--data.list", "null"], "videos", None),
        ("root: videos", [], "videos", None),
    ],
)
def test_data_named_on_the_command_line_replace_those_of_the_file(tmp_path, text, words, root, list_):
    file = tmp_path / "config.yaml"
    file.write_text(f"data:\n  {text}\n")
    data = parse(["--config", str(file), *words])[0].data
    assert (data.root, data.list) == (root, list_)


def test_a_class_that_does_not_exist_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"mixer.*MPL"):
        mixer(tmp_path, "MPL")


@pytest.mark.parametrize("words", [("null",), ("2.0", "null")])
def test_null_on_the_command_line_at_any_depth(words):
    clips = [word for value in words for word in ("--model.backbone.mixer.optimizer.clip", value)]
    assert parse(clips)[0].model.backbone.mixer == TTT()
    chunk = ("--model.backbone.mixer.chunk", "Whole", "--model.backbone.mixer.chunk.frames")
    assert parse([*chunk, "null"])[0].model.backbone.mixer.chunk == Whole(None)
    assert parse([*chunk[:2], chunk[2] + "=null"])[0].model.backbone.mixer.chunk == Whole(None)
    both = [word.replace("mixer.", "mixer.mixer.") for word in clips]
    assert parse(["--model.backbone.mixer", "Bidirectional", *both])[0].model.backbone.mixer == Bidirectional(TTT())
    assert parse(["--model.backbone.mixer", "Attention", "--model.backbone.mixer.window", "null"])[0]


def test_null_where_there_must_be_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"mixer\.optimizer\.steps must be int, not"):
        parse(["--model.backbone.mixer.optimizer.steps", "null"])


def test_an_unknown_setting_is_named_with_its_whole_key():
    with pytest.raises(ConfigError, match=r"setting model\.backbone\.mixer\.optimizer\.rate: SGD has no 'rate'"):
        parse(["--model.backbone.mixer.optimizer", "SGD", "--model.backbone.mixer.optimizer.rate", "0.01"])
    with pytest.raises(ConfigError, match=r"unknown setting model\.backbone\.mixer\.foo: TTT has no 'foo'"):
        parse(["--model.backbone.mixer.foo", "1"])
    with pytest.raises(ConfigError, match=r"Patches has no 'layout'; .*; give --model\.encoder before it"):
        parse(["--model.encoder.layout", "TD", "--model.encoder", "Features"])


def test_lists_with_commas():
    words = ["--data.size", "48,32", "--trackers=wandb,tensorboard", "--optimizer.betas", "0.8,0.9"]
    config = parse([*words, "--data.augment.speed", "0.5,2", "--data.root", "a,b"])[0]
    assert (config.data.size, config.trackers, config.optimizer.betas) == (
        (48, 32),
        ("wandb", "tensorboard"),
        (0.8, 0.9),
    )
    assert (config.data.augment.speed, config.data.root) == ((0.5, 2.0), "a,b")
    stem = ["--model.encoder", "ConvStem"]
    for name, value in (("channels", "8,8"), ("time_kernels", "3,3"), ("time_strides", "2,1")):
        stem += [f"--model.encoder.{name}", value]
    assert parse([*stem, "--trackers", "wandb"])[0].model.encoder.channels == (8, 8)
    assert parse(["--trackers", "wandb"])[0].trackers == ("wandb",)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--data.size", "32"], r"size must be a list of 2, not '32'; write 32,32$"),
        (["--data.size", "[32]"], r"size must be a list of 2, not '\[32\]'; write 32,32$"),
        (["--data.size", "1,2,3"], r"size must be a list of 2, not '1,2,3'; write 32,32$"),
        (["--data.size", ""], r"size must be a list of 2, not ''; write 32,32$"),
        (["--optimizer.betas", "0.9"], r"betas must be a list of 2 or null, not '0\.9'; write 0\.5,0\.5$"),
        (
            ["--model.encoder", "ConvStem", "--model.encoder.channels", "a,8"],
            r"channels must be a list, .*; write 32,32$",
        ),
    ],
)
def test_hints_of_lists_have_no_brackets_that_a_shell_would_read(words, hint):
    with pytest.raises(ConfigError, match=hint):
        parse(words)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: 1\nseed: 2", r"'seed' is given twice"),
        ("optimizer: {lr: 1}\nmix: {mixup: 0, mixup: 1}", r"'mixup' is given twice"),
        ("model: {encoder: {class_path: ConvStem, init_args: 3}}", r"encoder\.init_args must be settings of ConvStem"),
        ("model: {encoder: {class_path: [ConvStem]}}", r"encoder: \['ConvStem'\] is neither one of"),
        ("model: {encoder: ..Mine}", r"encoder: '\.\.Mine' is neither one of"),
        ("model: {encoder: broken_module.Mine}", r"cannot be imported \(TypeError: "),
        ("seed: 2020-13-45", r"is not valid YAML: month must be in 1\.\.12"),
        ("optimizer.lr: 1", r"unknown setting optimizer\.lr; did you mean 'optimizer\.lr'"),
        ("seed: 36893488147419103232", r"seed must be below"),
        ("out: ''", r"out must not be empty"),
        ("seed: [" + "&a [1, 1, 1, 1, 1, 1, 1, 1, 1], [" + ", ".join(["*a"] * 9) + "]]", r"^seed must be .{,600}$"),
    ],
)
def test_strange_files_end_in_one_sentence(tmp_path, monkeypatch, text, sentence):
    (tmp_path / "broken_module.py").write_text("1 + 'a'\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=sentence):
        parse(["--config", "c.yaml"])


def test_a_mapping_may_be_merged_and_overridden(tmp_path):
    (tmp_path / "c.yaml").write_text("mix: &m {mixup: 0.1}\nmodel: {backbone: {depth: 3}}\n")
    assert parse(["--config", str(tmp_path / "c.yaml")])[0].mix.mixup == 0.1
    (tmp_path / "c.yaml").write_text(
        "mix: &m {mixup: 0.1, cutmix: 0.2}\ncheckpoint:\n  keep: 3\n<<: {mix: {mixup: 0.5}}\n"
    )
    assert parse(["--config", str(tmp_path / "c.yaml")])[0].mix.mixup == 0.1


@pytest.mark.parametrize("words", [["--=3"], ["--out="], ["--data.root", ""], ["--model.encoder", "{init_args: 3}"]])
def test_strange_words_end_in_one_sentence(words):
    with pytest.raises(ConfigError):
        parse(words)


def test_of_epochs_and_steps_the_one_given_last_counts(tmp_path):
    def length(*words):
        schedule = parse([*words])[0].schedule
        return schedule.epochs, schedule.steps

    mine, both = tmp_path / "mine.yaml", tmp_path / "both.yaml"
    mine.write_text("schedule: {epochs: 3}\n")
    both.write_text("schedule: {epochs: 3, steps: 5}\n")
    assert length("--config", "folder") == (10, 720)
    assert length("--config", "folder", "--schedule.epochs", "1") == (1, None)
    assert length("--data.root", "x", "--schedule.epochs=1") == (1, None)  # the recipe where none is named
    assert length("--config", "folder", "--config", str(mine)) == (3, None)
    assert length("--config", str(mine), "--config", "folder") == (3, 720)
    assert length("--config", str(both)) == (3, 5)
    assert length("--config", str(both), "--schedule.epochs", "2") == (2, None)
    assert length("--config", str(mine), "--schedule.steps", "7") == (3, 7)
    assert length("--schedule.steps", "7", "--schedule.warmup", "1") == (10, 7)
