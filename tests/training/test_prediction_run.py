"""Training without labels, and classification that starts from what it learned."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from tests.training.test_run import Killed, curve, kill_at, lines
from tttvideo.pretrained import from_pretrained
from tttvideo.training.arguments import parse


@pytest.fixture(scope="module")
def loose(videos, tmp_path_factory):
    """The videos of all classes in one flat folder, and one that has a single frame."""
    folder = tmp_path_factory.mktemp("loose")
    for i, path in enumerate(sorted((videos / "train").rglob("*.mp4"))):
        shutil.copy(path, folder / f"{i}.mp4")
    return folder


@pytest.fixture
def predict(arguments, loose):
    def build(*extra: str, **settings: object) -> list[str]:
        off = {"mix.mixup": 0.0, "mix.cutmix": 0.0, "data.root": loose, "model.task": "Prediction"}
        # The class comes before its settings, which jsonargparse would otherwise give to another one.
        words = arguments(*extra, **{**off, **settings})
        chunk = ["--model.backbone.mixer.chunk", "FrameCausal"]
        return words + chunk

    return build


def run_of(argv: list[str]) -> Path:
    return Path(argv[argv.index("--out") + 1])


def test_a_flat_folder_of_videos_without_classes(predict, loose, capsys):
    argv = predict(**{"model.task.rollout": 2, "model.task.rollout_from": 0.0})
    assert train.main(argv) == 0
    said = capsys.readouterr().out
    assert "train  11 videos (train: 11 of the 14 videos" in said
    assert "lowest val mse" in said
    assert "summed over channels, height and width (OpenSTL's convention)" in said
    run = run_of(argv)
    log = lines(run / "log.jsonl")
    names = {
        f"val_{method}{kind}" for method in ("", "copy_last_", "mean_frame_", "linear_") for kind in ("mse", "mae")
    }
    assert names | {"train_loss", "train_mse", "val_n"} <= set(log[0])
    assert log[0]["val_n"] == 3
    assert {"loss", "mse", "lr"} <= set(lines(run / "steps.jsonl")[0])
    assert not (run / "labels.json").exists()
    best = json.loads((run / "checkpoints" / "index.json").read_text())
    assert best["best_value"] == min(line["val_mse"] for line in log)
    assert from_pretrained(run).labels == []


def test_class_folders_serve_as_well_and_resume_is_exact(predict, videos, monkeypatch, capsys):
    argv = predict(data__root=videos)
    assert train.main(argv) == 0
    assert "train  14 videos (train: the folder" in capsys.readouterr().out
    whole = run_of(argv)
    again = predict("--resume", "auto", data__root=videos, out=whole.with_name("again"))
    with monkeypatch.context() as patch:
        from tttvideo.training.run_folder import JsonLines

        kill_at(patch, 6, JsonLines, "append")
        with pytest.raises(Killed):
            train.main(again)
    torch.manual_seed(99)
    assert train.main(again) == 0
    assert curve(run_of(again)) == curve(whole)


def test_a_batch_of_which_nothing_can_be_read(predict, loose, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(loose, root)
    for i in (0, 1, 2):
        (root / f"{i}.mp4").write_bytes(b"not a video")
    rolled = {"model.task.rollout": 2, "model.task.rollout_from": 0.0, "precision": "bf16"}
    argv = predict(data__root=root, data__batch_size=1, schedule__epochs=1, **rolled)
    assert train.main(argv) == 0
    log = lines(run_of(argv) / "log.jsonl")
    assert log[0]["skipped"] + log[0]["val_failed"] == 3
    assert log[0]["val_n"] + log[0]["val_failed"] == 3
    provenance = from_pretrained(run_of(argv)).provenance
    assert provenance["frame_rate"] == pytest.approx(10)


def test_lists_without_labels(predict, loose, tmp_path, capsys):
    listed = tmp_path / "list.csv"
    rows = [f"{loose / f'{i}.mp4'},{'train' if i < 10 else 'val'}" for i in range(14)]
    listed.write_text("path,split\n" + "\n".join(rows) + "\n")
    argv = predict(data__list=listed, schedule__epochs=1)
    at = argv.index("--data.root")
    del argv[at : at + 2]
    assert train.main(argv) == 0
    assert "train  10 videos" in capsys.readouterr().out


def test_classification_starts_from_prediction(predict, arguments, videos, tmp_path, capsys):
    pretraining = predict(schedule__epochs=1)
    assert train.main(pretraining) == 0
    source = from_pretrained(run_of(pretraining))
    words = ["--init_from", str(run_of(pretraining)), "--model.backbone.mixer.chunk", "FrameCausal"]
    # a learning rate of almost nothing: what is saved is what it started from
    tiny = {"optimizer.lr": 1e-12, "schedule.min_lr": 0, "schedule.warmup_lr": 0, "optimizer.weight_decay": 0}
    argv = arguments(*words, out="finetuned", **tiny)
    assert train.main(argv) == 0
    table = capsys.readouterr().out.partition("start  weights of ")[2]
    folder = run_of(argv)
    assert all(line in (folder / "console.log").read_text() for line in table.splitlines()[1:5])
    start = json.loads((folder / "start.json").read_text())
    assert set(start["loaded"]) == {key for key in source.state_dict() if not key.startswith("head.")}
    assert set(start["left"].values()) == {"starts afresh"}
    tuned = from_pretrained(run_of(argv))
    for part in ("encoder", "backbone"):
        before, after = getattr(source, part).state_dict(), getattr(tuned, part).state_dict()
        assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    assert tuned.labels == ["bright", "dark"]
    other = arguments(*words, out="other", model__backbone__width=8)
    assert train.main(other) == 2
    said = capsys.readouterr().err
    assert "does not fit this model's, which has another architecture" in said
    assert "give it the settings in" in said
    assert train.main(arguments("--init_from", str(tmp_path / "absent"), out="none")) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mix.mixup": 0.5}, "mix labels, which Prediction does not use"),
        (
            {"model.task.context": 9},
            "data.max_frames is 5, but Prediction as configured learns from clips of at least 10",
        ),
        ({"model.task.los": "mse"}, "did you mean 'loss'?"),
        ({"model.backbone.mixer": "Mamba", "model.backbone.mixer.heads": 2}, "backbone.frame_attention"),
    ],
)
def test_settings_that_do_not_go_together(predict, capsys, settings, sentence):
    argv = predict(**settings)
    if "model.backbone.mixer" in settings:
        argv = argv[: argv.index("--model.backbone.mixer.chunk")]
    assert train.main(argv) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_videos_too_short_for_the_context(predict, capsys):
    argv = predict(**{"model.task.context": 20, "data.max_frames": "null"})
    assert train.main(argv) == 2
    said = capsys.readouterr().err
    assert (
        "each of the 11 training videos is too short to learn from: the task's settings need 21 frames or more" in said
    )
    assert train.main([*argv, "--model.task.context", "2", "--resume", "auto"]) == 0


def test_tasks_are_chosen_in_yaml(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("model:\n  task:\n    class_path: Prediction\n    init_args: {loss: smooth_l1, context: 3}\n")
    config, text = parse(["--config", str(file)])
    assert (type(config.model.task).__name__, config.model.task.context) == ("Prediction", 3)
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert parse(["--config", str(again)])[0] == config
    assert type(parse([])[0].model.task).__name__ == "Classification"
    assert parse(["--model.task.label_smoothing", "0.1"])[0].model.task.label_smoothing == 0.1
