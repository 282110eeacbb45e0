"""Cross-validation as one command: how videos are divided, the runs, their table."""

import csv
import json
from collections import Counter

import pytest

from tttvideo.training.folds import summary, table
from tttvideo.training.run import main
from tttvideo.video.dataset import DataConfig, DataError
from tttvideo.video.split import balanced_folds


def paths(config, split):
    return {video.path for video in config.index(split).videos}


def test_folds_cover_the_two_splits_once_and_never_divide_a_group(videos, tmp_path):
    files = sorted(videos.rglob("*.mp4"))
    list_file = tmp_path / "list.csv"
    with list_file.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "group", "split"])
        writer.writerows([f, f.parent.name, f"g{i // 2}", f.parent.parent.name] for i, f in enumerate(files))
        writer.writerow([files[0].with_name("unread.mp4"), "bright", "g0", "test"])
    measured = Counter()
    for k in (1, 2, 3):
        config = DataConfig(list=str(list_file), fold=(k, 3))
        learned, kept = paths(config, "train"), paths(config, "val")
        assert learned | kept == set(map(str, files))
        assert not learned & kept
        groups = [{files.index(type(files[0])(path)) // 2 for path in part} for part in (learned, kept)]
        assert not groups[0] & groups[1]
        measured.update(kept)
    assert set(measured.values()) == {1}
    assert len(DataConfig(list=str(list_file), fold=(1, 3)).index("test", labels=["bright", "dark"]).videos) == 1


def test_folds_hold_classes_in_equal_shares():
    labels = [("a",)] * 40 + [("b",)] * 20 + [("c",)] * 4
    folds = balanced_folds([str(i) for i in range(64)], labels, 4, seed=3)
    counts = Counter(zip(folds, labels))
    assert all(counts[fold, label] == n for fold in range(4) for label, n in ((("a",), 10), (("b",), 5), (("c",), 1)))
    assert folds != balanced_folds([str(i) for i in range(64)], labels, 4, seed=4)


def test_a_column_names_the_folds(videos, tmp_path):
    files = sorted(videos.rglob("*.mp4"))

    def config(count, number=1):
        return DataConfig(list=str(tmp_path / "list.csv"), fold=(number, count))

    def write(fold_of):
        rows = "".join(f"{f},{f.parent.name},{fold_of(i)}\n" for i, f in enumerate(files))
        (tmp_path / "list.csv").write_text("path,label,fold\n" + rows)

    write(lambda i: "s1" if i % 2 else "s2")
    assert paths(config(2), "val") == {str(f) for f in files[1::2]}
    assert paths(config(2, 2), "train") == {str(f) for f in files[1::2]}
    with pytest.raises(DataError, match=r"has 2 folds \(s1, s2\), not 3; ask for 2"):
        config(3).index("train")
    write(lambda i: "" if i == 3 else "s1")
    with pytest.raises(DataError, match=r"line 5 has an empty fold"):
        config(2).index("val")


def test_a_fold_that_leaves_one_class_is_named(videos, tmp_path):
    rows = "".join(f"{f},{f.parent.name},{f.parent.name}\n" for f in sorted(videos.rglob("*.mp4")))
    (tmp_path / "list.csv").write_text("path,label,group\n" + rows)
    with pytest.raises(DataError, match=r"all but fold 1 of 2 of .*list.csv holds one class only"):
        DataConfig(list=str(tmp_path / "list.csv"), fold=(1, 2)).index("train")


def test_the_interval_is_that_of_students_t():
    rows = [{"top1": v, "n": 10.0, "map": None} for v in (0.5, 0.75, 0.75, 1.0)]
    (mean, low, high) = summary(rows)["top1"].values()
    # standard deviation 0.204, over the root of 4 folds, times 3.182
    assert (mean, low, high) == pytest.approx((0.75, 0.4252, 1.0748), abs=1e-4)
    assert list(summary(rows)) == ["top1"]


def test_small_errors_are_told_apart():
    rows = [{"mse": mse, "copy_last_mse": 0.0, "n": 6.0, "too_short": 0} for mse in (0.000904, 0.00121)]
    one, *_, interval, _ = [line.split() for line in table(rows)][1:]
    assert one == ["1", "6", "0.000904", "0.000"]
    assert interval == ["95", "%", "-0.000887", "to", "0.003", "0.000", "to", "0.000"]


def test_one_command_trains_and_resumes_all_folds(arguments, tmp_path, capsys):
    settings = {"schedule.epochs": 1, "mix.cutmix": 0.0, "mix.mixup": 0.0}
    words = [*arguments(**settings), "--folds", "2"]
    assert main(words) == 0
    out = tmp_path / "run"
    found = json.loads((out / "folds.json").read_text())
    assert sum(row["n"] for row in found["folds"]) == 19
    values = [row["top1"] for row in found["folds"]]
    assert found["mean"]["top1"]["mean"] == pytest.approx(sum(values) / 2)
    said = capsys.readouterr().out
    assert f"{values[0]:.3f}" in said.splitlines()[-5]
    assert "all but fold 1 of 2" in said
    # a fold is an ordinary run, which its settings start again
    logs = [(out / f"fold-{k}" / "steps.jsonl").read_text() for k in (1, 2)]
    assert main(["--config", str(out / "fold-2" / "config.yaml"), "--out", str(tmp_path / "alone")]) == 0
    assert (tmp_path / "alone" / "steps.jsonl").read_text() == logs[1]
    # what was done stays, what was not is done
    (out / "folds.json").unlink()
    assert main(words) == 2
    assert main([*words, "--resume", "auto"]) == 0
    assert [(out / f"fold-{k}" / "steps.jsonl").read_text() for k in (1, 2)] == logs
    assert json.loads((out / "folds.json").read_text()) == found
    (out / "fold-1" / "log.jsonl").write_text("")
    capsys.readouterr()
    assert main([*words, "--resume", "auto"]) == 2
    assert f"take {out / 'fold-1'} away to train this fold again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--folds", "1"], "folds must be at least 2"),
        (["--folds", "40"], "too few for 40 folds"),
        (["--folds", "2", "--evaluate_every", "0"], "evaluate_every is 0"),
        (["--folds", "2", "--resume", "step-00000004"], "folds has several runs; give auto"),
        (["--data.fold", "3,2"], "k from 1 to n"),
    ],
)
def test_folds_that_cannot_be_made_are_refused(arguments, tmp_path, capfd, extra, sentence):
    assert main(arguments(*extra)) == 2
    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
