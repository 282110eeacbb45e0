"""Each mistake: one sentence on stderr, exit code 2, and nothing written."""

import shutil
from itertools import pairwise
from pathlib import Path

import pytest

import train


def mistake(argv: list[str], capsys) -> str:
    """The sentence of a start that must fail."""
    assert train.main(argv) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert "Traceback" not in said
    assert not Path(argv[argv.index("--out") + 1]).exists() if "--out" in argv else True
    return said


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--data.root", "/no/such/folder"], "/no/such/folder"),
        (["--optimizer.lrr", "1"], "unknown setting optimizer.lrr; did you mean 'optimizer.lr'?"),
        (["--lr", "1"], "did you mean 'optimizer.lr'?"),
        (["--shedule.epochs", "1"], "did you mean 'schedule.epochs'?"),
        (["--model.backbone.mixer.head", "1"], "did you mean 'heads'?"),
        (["--model.backbone.mixer", "Atention"], "Attention"),
        (["--optimizer.lr", "fast"], "optimizer.lr must be float, not 'fast'"),
        (["--accumulate", "1.5"], "accumulate must be int, not '1.5'"),
        (["--schedule.name", "linear"], "schedule.name must be one of 'cosine', 'step', not 'linear'"),
        (["--schedule.epochs", "0"], "schedule.epochs must be at least 1, not 0"),
        (["--model.backbone.mixer.heads", "3"], "3"),
        (["--model.encoder.patch", "7"], "7"),
        (["--optimizer.name", "adamm"], "did you mean"),
        (["--trackers", "[tensorbord]"], "trackers: 'tensorbord' is not available"),
        (["--processes", "2"], "processes is 2 but this run has 1"),
        (["--config", "/no/such.yaml"], "/no/such.yaml does not exist"),
        (["stray"], "stray"),
        (["--learning_rate", "1"], "did you mean 'optimizer.lr'?"),
        (["--optimizer.learning_rate", "1"], "did you mean 'optimizer.lr'?"),
        (["--resume", "yes"], "resume must be auto, null or a checkpoint of the run such as step-00000040, not 'yes'"),
        (["--data.size", "33"], "data.size must be a list of 2, not '33'; write 32,32"),
        (["--trackers", "tensorboard,tensorbord"], "trackers: 'tensorbord' is not available"),
        (["--data.max_frames", "few"], "data.max_frames must be int or null, not 'few'"),
        (["--see", "3"], "unknown setting see; did you mean 'seed'?"),
        (["--model.backbone.mixer.inner", "Foo"], "mixer.inner: 'Foo' is neither one of Conv, "),
        (["--model.backbone.mixer.inner", "nopkg.Foo"], "inner: 'nopkg.Foo' cannot be imported (No module named"),
        (["--model.backbone.mixer.inner", "tttvideo.ttt.Foo"], "'tttvideo.ttt.Foo' cannot be imported"),
        (["--optimizer.weight_decay", "-1"], "optimizer.weight_decay must not be negative, not -1"),
        (["--optimizer.betas", "[0.9, 1]"], "optimizer.betas must lie in [0, 1), not (0.9, 1.0)"),
        (["--schedule.min_lr", "1"], "schedule.min_lr (1.0) must not be above optimizer.lr (0.003)"),
        (["--schedule.min_lr", "-1"], "schedule.min_lr must not be negative"),
        (["--activation_checkpointing", "-1"], "activation_checkpointing must be 0 (off) or a number of chunks"),
        (["--accumulate", "0"], "accumulate must be at least 1, not 0"),
        (["--processes", "0"], "processes must be at least 1"),
        (["--data.sampling", "uniform=1.5"], "uniform must be a whole number, not 1.5"),
        (["--data.sampling", "uniform=1_0"], "uniform must be a whole number, not 1_0"),
        (["--data.sampling", "fps=1_0"], "fps must be a number, not 1_0"),
        (["--mix.mixup", ".nan"], "mix.mixup must be a finite number, not nan"),
        (["--ema", ".inf"], "ema must be a finite number, not inf"),
        (["--model.backbone.mixer.base_rate", ".nan"], "base_rate must be a finite number, not nan"),
        (["--data.augment.scale", "[0.5, .nan]"], "data.augment.scale must be a finite number, not nan"),
        (["--data", "[]"], "data must be settings, such as root: ..., not []"),
        (["--seed", "9" * 5000], "seed must be int, not '999"),
        (["--config", "/"], "configuration file / is a folder"),
        (
            ["--model.backbone.mixer.class_path", "TTT"],
            "write --model.backbone.mixer CLASS, and",
        ),
        (["--model.backbone.mixer.init_args.heads", "2"], "write --model.backbone.mixer CLASS, and"),
        (["--model.backbone.mixer", "[" * 20_000], "is not valid YAML: nested more than 64 levels deep"),
    ],
)
def test_settings(arguments, capsys, extra, says):
    assert says in mistake(arguments(*extra), capsys)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optimizer:\n  lrr: 1\n", "unknown setting optimizer.lrr; did you mean 'optimizer.lr'?"),
        ("optimiser:\n  lr: 1\n", "unknown setting optimiser; did you mean 'optimizer'?"),
        ("optimizer:\n  lr: fast\n", "optimizer.lr must be float, not 'fast'"),
        (
            "model:\n  backbone:\n    mixer:\n      class_path: TTT\n      init_args:\n        iner: MLP\n",
            "'inner'",
        ),
        ("optimizer: [\n", "not valid YAML"),
        ("", "is empty"),
        ("- seed\n", "holds no settings"),
        ("seed\n", "holds no settings"),
        ("\udc89PNG\0", "is not a text file (UTF-8)"),
        ("data: " + "[" * 20_000 + "]" * 20_000, "nested more than 64 levels deep"),
        ("data: " + "{a: " * 20_000, "nested more than 64 levels deep"),
        ("seed: " + "9" * 5000, "a number of 5,000 digits"),
        ("data: []", "data must be settings, such as root: ..., not []"),
        ("mix: {mixup: .nan}", "mix.mixup must be a finite number, not nan"),
        ("seed: &a [*a]", "an alias within what it stands for"),
        (
            "data: {size: [&a [1, 1], " + ", ".join(f"&{b} [{f'*{a}, ' * 9}]" for a, b in pairwise("abcdefg")) + "]}",
            "more than 100,000 values",
        ),
    ],
)
def test_files(arguments, capsys, tmp_path, text, says):
    (tmp_path / "c.yaml").write_text(text, errors="surrogateescape")
    said = mistake(["--config", str(tmp_path / "c.yaml"), *arguments()], capsys)
    assert says in said
    assert "c.yaml" in said


def test_one_class_only(arguments, capsys, videos, tmp_path):
    root = tmp_path / "one"
    (root / "train").mkdir(parents=True)
    (root / "train" / "bright").symlink_to(videos / "train" / "bright")
    assert "one class only" in mistake(arguments(data__root=root), capsys)


def test_empty_folder_and_no_data(arguments, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in mistake(arguments(data__root=tmp_path / "empty"), capsys)
    assert "data.root" in mistake(["--out", str(tmp_path / "run")], capsys)


def test_not_one_training_video_can_be_read(arguments, capsys, videos, tmp_path):
    """Such a run must not look like a success; and NaN is not JSON."""
    root = tmp_path / "broken"
    for name in ("bright", "dark"):
        (root / "train" / name).mkdir(parents=True)
        for i in range(2):
            (root / "train" / name / f"{i}.mp4").write_bytes(b"no video at all")
    (root / "val").symlink_to(videos / "val")
    assert train.main(arguments(data__root=root)) == 2
    said = capsys.readouterr().err
    assert "none of the 4 training videos could be read (first: " in said
    assert ".mp4: " in said
    text = (tmp_path / "run" / "steps.jsonl").read_text()
    assert '"loss": null' in text
    assert "NaN" not in text


def test_another_architecture_and_another_batch_size(arguments, capsys):
    assert train.main(arguments(schedule__epochs=1)) == 0
    capsys.readouterr()
    assert train.main(arguments("--resume", "auto", model__backbone__width=32)) == 2
    said = capsys.readouterr().err
    assert "model.backbone.width is 16 there and 32 now" in said
    assert len(said.splitlines()) == 1
    assert train.main(arguments("--resume", "auto", data__batch_size=4)) == 2
    assert "data.batch_size = 2 and this start has 4" in capsys.readouterr().err


def test_yaml_floats_overrides_and_a_class_of_the_users_own(arguments, tmp_path, monkeypatch):
    from tttvideo.training.arguments import parse

    (tmp_path / "theirpkg.py").write_text(
        "from dataclasses import dataclass\n"
        "from tttvideo.ttt import MLP\n"
        "@dataclass(frozen=True)\n"
        "class MyInner(MLP):\n"
        "    own: int = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "optimizer: {lr: 1e-4, weight_decay: 1e-2}\nseed: 3\n"
        "model: {backbone: {mixer: {class_path: TTT, init_args: {inner: theirpkg.MyInner}}}}\n"
    )
    config, yaml = parse(["--config", "c.yaml", "--optimizer.weight_decay", "0.5", "--precision", "bf16"])
    assert config.optimizer.lr == 1e-4
    assert config.optimizer.weight_decay == 0.5
    assert (config.seed, config.precision) == (3, "bf16")
    assert config.model.backbone.mixer.inner.own == 3
    (tmp_path / "again.yaml").write_text(yaml)
    assert parse(["--config", "again.yaml"])[0] == config


def test_print_config(capsys):
    with pytest.raises(SystemExit) as done:
        train.main(["--print_config"])
    assert done.value.code in (0, None)
    assert "layer_decay: null" in capsys.readouterr().out


def test_a_class_that_only_validation_has_is_named_at_the_start(arguments, videos, tmp_path, capsys):
    root = tmp_path / "misspelt"
    shutil.copytree(videos, root)
    shutil.copytree(root / "val" / "dark", root / "val" / "darkk")
    assert train.main(arguments(data__root=root, schedule__epochs=1)) == 0
    said = capsys.readouterr().out
    assert "note: a class has no video in train and cannot be learned: 'darkk' (2 in val), nearest: 'dark'" in said
