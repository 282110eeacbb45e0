import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.optim import get_optimizer_info, list_optimizers

from tttvideo.model import ModelConfig
from tttvideo.plain import to_plain
from tttvideo.serialize import resolve_checkpoint
from tttvideo.training.checkpoint import Checkpoints, Progress, Rule, first_difference
from tttvideo.training.config import ConfigError, OptimizerConfig
from tttvideo.training.optimizer import build_optimizer
from tttvideo.training.position import read_position
from tttvideo.training.state import load_state, save_state

RULE = Rule(metric="top1", split="val", split_rule="val: 3 videos")
MODEL = {"model": {"class_path": "M", "init_args": {"width": 8}}, "preprocessing": {}, "labels": ["a", "b"]}
FIXED = {"processes": 1, "seed": 0}
START = Progress(fixed=FIXED)


def save(checkpoints: Checkpoints, step: int, progress: Progress = START, top1: float | None = None):
    def save_model(folder: Path, provenance: dict) -> None:
        (folder / "config.json").write_text(json.dumps({**MODEL, "provenance": provenance}))
        (folder / "model.safetensors").write_bytes(b"weights")

    return checkpoints.save(
        replace(progress, step=step),
        None if top1 is None else {"top1": top1},
        save_model=save_model,
        save_state=lambda folder: (folder / "state.bin").write_bytes(b"state"),
    )


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_keeps_the_last_n_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, rule=RULE)
    progress = Progress(fixed=FIXED)
    for step, top1 in [(10, 0.2), (20, 0.9), (30, 0.9), (40, 0.5), (50, None)]:
        progress = save(checkpoints, step, progress, top1)
    assert names(tmp_path) == ["index.json", "step-00000020", "step-00000040", "step-00000050"]
    index = json.loads((tmp_path / "index.json").read_text())
    assert index == {
        "best": "step-00000020",
        "best_value": 0.9,
        "rule": "highest val top1",
        "split": "val",
        "split_rule": "val: 3 videos",
        "videos": "",
        "last": "step-00000050",
    }
    provenance = json.loads((tmp_path / "step-00000040" / "config.json").read_text())["provenance"]
    assert (provenance["step"], provenance["metrics"], provenance["split"]) == (40, {"top1": 0.5}, "val")


def test_the_best_is_forgotten_when_it_was_chosen_otherwise(tmp_path):
    rule = replace(RULE, videos="1234")
    saved = save(Checkpoints(tmp_path, keep=2, rule=rule), 10, top1=0.9)
    for now, kept in [
        (rule, True),
        (replace(rule, split_rule="val: 3 videos of a folder that moved"), True),
        (replace(rule, videos="5678"), False),
        (replace(rule, metric="map"), False),
    ]:
        checkpoints = Checkpoints(tmp_path, keep=2, rule=now)
        progress = checkpoints.read(tmp_path / "step-00000010", FIXED, MODEL)
        assert (progress.best, progress.best_value) == ((saved.best, 0.9) if kept else (None, None))
        assert (checkpoints.forgets() is None) == kept
        assert kept or "highest val top1" in str(checkpoints.forgets())


def test_without_validation_the_last_is_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, rule=Rule(None, "val", "train: all"))
    save(checkpoints, 20, save(checkpoints, 10))
    assert json.loads((tmp_path / "index.json").read_text())["best"] == "step-00000020"
    assert names(tmp_path) == ["index.json", "step-00000020"]


@pytest.mark.parametrize("where", ["save_model", "save_state", "rename", "index", "prune"])
def test_a_kill_while_saving_leaves_a_whole_checkpoint_to_resume_from(tmp_path, monkeypatch, where):
    checkpoints = Checkpoints(tmp_path, keep=1, rule=RULE)
    progress = save(checkpoints, 10, top1=0.5)

    class Killed(BaseException):
        pass

    def killed(*args, **kwargs):
        raise Killed

    arguments = dict(save_model=lambda f, p: (f / "config.json").write_text("{}"), save_state=lambda f: None)
    if where in arguments:
        arguments[where] = killed
    elif where == "rename":
        monkeypatch.setattr(Path, "rename", killed)
    elif where == "index":
        monkeypatch.setattr(Checkpoints, "_write_index", killed)
    else:
        monkeypatch.setattr("tttvideo.training.checkpoint.shutil.rmtree", killed if where == "prune" else None)
    with pytest.raises(Killed):
        checkpoints.save(replace(progress, step=20), {"top1": 0.4}, **arguments)
    monkeypatch.undo()
    expected = "step-00000010" if where in ("save_model", "save_state", "rename") else "step-00000020"
    if where == "prune":  # rmtree is also used before writing: then nothing was written
        expected = checkpoints.last().name
        assert expected in ("step-00000010", "step-00000020")
    assert checkpoints.last().name == expected
    checkpoints.mend()
    checkpoints.clean(checkpoints.last(), progress)
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    assert checkpoints.last().name == expected
    assert json.loads((tmp_path / "step-00000010" / "progress.json").read_text())["step"] == 10


def test_read_gives_back_the_position(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, rule=RULE)
    before = Progress(epoch=2, batch=3, totals={"loss": 1 / 3, "counted": 3, "frames": 9, "seconds": 0.5}, fixed=FIXED)
    saved = save(checkpoints, 7, before, top1=0.25)
    assert checkpoints.read(checkpoints.last(), FIXED, MODEL) == saved
    assert (saved.best, saved.best_value, saved.totals["loss"]) == ("step-00000007", 0.25, 1 / 3)


def test_another_architecture_is_one_sentence_saying_what_differs(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, rule=RULE)
    save(checkpoints, 7)
    wider = {**MODEL, "model": {"class_path": "M", "init_args": {"width": 16}}}
    with pytest.raises(ConfigError, match=r"model.width is 8 there and 16 now") as caught:
        checkpoints.read(checkpoints.last(), FIXED, wider)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"the length of labels is 2 there and 3 now"):
        checkpoints.read(checkpoints.last(), FIXED, {**MODEL, "labels": ["a", "b", "c"]})


def test_a_field_that_the_program_has_got_since_does_not_make_another_model(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, rule=RULE)
    save(checkpoints, 7)
    file = checkpoints.last() / "config.json"
    now = {**MODEL, "model": to_plain(ModelConfig())}
    then = json.loads(json.dumps(now))
    del then["model"]["init_args"]["task"]["init_args"]["half_life"]
    file.write_text(json.dumps(then))
    progress = checkpoints.last() / "progress.json"
    position = json.loads(progress.read_text())
    del position["files"], position["checksum"]  # which that program did not write
    progress.write_text(json.dumps(position))
    assert checkpoints.read(checkpoints.last(), FIXED, now).step == 7
    now["model"]["init_args"]["task"]["init_args"]["half_life"] = 3.0
    with pytest.raises(ConfigError, match=r"half_life is None there and 3.0 now"):
        checkpoints.read(checkpoints.last(), FIXED, now)


def test_another_number_of_processes_is_one_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, rule=RULE)
    save(checkpoints, 7)
    with pytest.raises(ConfigError, match=r"saved with processes = 1 and this start has 2"):
        checkpoints.read(checkpoints.last(), {**FIXED, "processes": 2}, MODEL)


def test_another_optimizer_is_one_sentence(tmp_path):
    checkpoints, now = Checkpoints(tmp_path, keep=1, rule=RULE), {"optimizer.name": "adamw"}
    save(checkpoints, 7)
    checkpoints.read(checkpoints.last(), FIXED | now, MODEL)  # of a version that did not keep it
    assert "optimizer.name" not in read_position(checkpoints.last()).fixed
    save(checkpoints, 8, replace(START, fixed=FIXED | now))
    with pytest.raises(ConfigError, match=r"optimizer\.name = adamw and this start has sgd, so its optimizer's state"):
        checkpoints.read(checkpoints.last(), FIXED | {"optimizer.name": "sgd"}, MODEL)


NOT_HERE = ("bnb", "fused", "kron")
"""Optimizers of libraries that are not installed; kron compiles for half a minute."""


@pytest.mark.filterwarnings("ignore")
def test_changed_settings_of_every_optimizer_count_and_what_it_gathered_stays(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    names = [name for name in list_optimizers() if not name.startswith(NOT_HERE)]
    assert len(names) > 50
    for name in names:
        betas = get_optimizer_info(name).has_betas
        settings = [
            OptimizerConfig(name=name, weight_decay=decay, betas=(one, 0.8) if betas else None)
            for decay, one in ((0.1, 0.5), (0.2, 0.6))
        ]
        if "adan" in name:  # it has three betas
            with pytest.raises(ConfigError, match=r"adan\w* cannot be built with these settings \(IndexError"):
                build_optimizer(model, settings[0])
            settings = [replace(config, betas=None) for config in settings]
        before, after = (build_optimizer(model, config) for config in settings)
        fresh = [dict(group) for group in after.param_groups]
        for _ in range(2):
            before.zero_grad()
            model(torch.randn(3, 4)).square().sum().backward(create_graph=name == "adahessian")
            before.step()
        save_state(tmp_path, model, before, None)
        load_state(tmp_path, model, after, None)
        for group, now, old in zip(after.param_groups, fresh, before.param_groups, strict=True):
            for key in set(group) - {"params"}:
                expected = old if key in ("lr", "initial_lr", "step", "lookahead_step") else now
                assert group[key] == expected[key], (name, key)
        assert len(after.state) == len(before.state), name


def test_the_best_is_not_replaced_by_another_in_silence(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, rule=RULE)
    save(checkpoints, 7)
    save(checkpoints, 8)
    index = checkpoints.folder / "index.json"
    whole = json.loads(index.read_text())
    for key, value, sentence in (
        ("best", "step-00000001", "is missing or not whole"),
        ("best", "../../x1", "names no checkpoint"),
        ("best", 5, "best cannot be 5"),
        ("best_value", "9" * 5000, "best_value cannot be"),
        *((key, ..., f"has no '{key}'") for key in ("best", "best_value", "last", "rule", "split", "split_rule")),
    ):
        index.write_text(json.dumps({name: v for name, v in {**whole, key: value}.items() if v is not ...}))
        with pytest.raises(ValueError, match=sentence):
            resolve_checkpoint(tmp_path)
    index.write_text(index.read_text().replace("{", '{"a": ' + "9" * 5000 + ", ", 1))
    with pytest.raises(ValueError, match=r"a number of 5,000 digits\)"):
        resolve_checkpoint(tmp_path)


def test_links_among_the_remains_of_a_write_are_removed_and_not_followed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, rule=RULE)
    save(checkpoints, 7)
    (tmp_path / "mine").mkdir()
    for name, target in ((".step-00000008", tmp_path / "mine"), (".step-00000009", "nowhere"), (".step-1.old", ".")):
        (checkpoints.folder / name).symlink_to(target)
    assert checkpoints.clean(checkpoints.last(), START) == []
    assert names(checkpoints.folder) == ["index.json", "step-00000007"]
    assert (tmp_path / "mine").is_dir()


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, rule=RULE)
    save(checkpoints, 7)
    file = checkpoints.last() / "progress.json"
    whole = json.loads(file.read_text())
    file.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        checkpoints.read(checkpoints.last(), FIXED, MODEL)
    for key in ("epoch", "batch", "step", "totals", "best", "best_value", "fixed"):
        file.write_text(json.dumps({name: v for name, v in whole.items() if name not in (key, "checksum")}))
        with pytest.raises(ConfigError, match=f"progress.json has no '{key}'"):
            checkpoints.read(checkpoints.last(), FIXED, MODEL)


def test_first_difference():
    assert first_difference({"a": (1, 2)}, {"a": [1, 2]}, "") is None
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}, "x") == ("x.a.b", 1, 2)
    assert first_difference({"a": 1}, {"a": 1, "b": 2}, "") == ("b", None, 2)


def test_a_copy_that_the_user_made_is_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1, rule=replace(RULE, metric=None))
    save(checkpoints, 10)
    copy = tmp_path / "checkpoints" / "step-00000010-mine"
    shutil.copytree(tmp_path / "checkpoints" / "step-00000010", copy)
    assert checkpoints.last() == tmp_path / "checkpoints" / "step-00000010"
    assert checkpoints.clean(checkpoints.last(), START) == []
    save(checkpoints, 20)
    assert names(tmp_path / "checkpoints") == ["index.json", "step-00000010-mine", "step-00000020"]


def test_a_checkpoint_of_another_run_is_not_taken_for_one_of_this(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1, rule=RULE)
    save(checkpoints, 10)
    for name in ("step-00000010", str(checkpoints.folder / "step-00000010")):
        assert checkpoints.chosen(name) == checkpoints.folder / "step-00000010"
    with pytest.raises(ConfigError, match=r"other/checkpoints/step-00000010 is no checkpoint of "):
        checkpoints.chosen(str(tmp_path / "other" / "checkpoints" / "step-00000010"))


def test_a_position_inside_an_epoch_has_the_sums_of_it(tmp_path):
    """Of a version without checksums; it was a KeyError at the end of the epoch."""
    checkpoint = tmp_path / "step-00000002"
    checkpoint.mkdir()
    content = {"epoch": 0, "batch": 2, "step": 2, "totals": {}, "best": None, "best_value": None, "fixed": {}}
    (checkpoint / "progress.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lacks the sums"):
        read_position(checkpoint)
    content["totals"] = {"loss": 1.0, "frames": 6, "seconds": 0.1, "videos": 2}
    (checkpoint / "progress.json").write_text(json.dumps(content))
    assert read_position(checkpoint).batch == 2


def test_the_index_never_names_a_checkpoint_that_is_set_aside(tmp_path, monkeypatch):
    """Wherever a kill comes, evaluation and export find the best of what the run goes on from."""
    run = tmp_path / "run"
    checkpoints = Checkpoints(run / "checkpoints", keep=3, rule=RULE)
    first = save(checkpoints, 10, top1=0.5)
    save(checkpoints, 30, save(checkpoints, 20, first, top1=0.6), top1=0.9)
    resumed = checkpoints.folder / "step-00000010"
    assert resolve_checkpoint(run).name == "step-00000030"

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.clean(resumed, first)
    monkeypatch.undo()
    assert resolve_checkpoint(run) == resumed
    assert checkpoints.clean(resumed, first) == ["aside-step-00000020", "aside-step-00000030"]
    assert resolve_checkpoint(run) == resumed
    index = json.loads((checkpoints.folder / "index.json").read_text())
    assert (index["best"], index["best_value"], index["last"]) == ("step-00000010", 0.5, "step-00000010")
    (checkpoints.folder / "index.json").unlink()  # killed before the first one
    assert resolve_checkpoint(run) == resumed
