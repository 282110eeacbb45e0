"""An export is the checkpoint: same outputs, with a card that says where its figures come from."""

import json
import os
import re

import pytest
import torch
import yaml

import tttvideo
from tests.evaluation.small import evaluate, noise_video, small_model, small_run, small_set, undrawn
from tttvideo.evaluation import write_report
from tttvideo.export import EXPORTED, ExportError, export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "demo", small_model(tubelets=True))


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """The run with its figures: metrics.json of its own in the run folder."""
    data = small_set(tmp_path_factory.mktemp("data") / "flashes", count=6)
    with undrawn():
        write_report(evaluate(run, data, frames="8,all"), run)
    config = run / "config.yaml"
    config.write_text(f"data:\n  root: {data}\n  val_fraction: 0.2\n")
    index = run / "checkpoints" / "index.json"
    index.write_text(index.read_text().replace("the folder data/val", f"the folder {data}/val"))
    return run


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_outputs_are_equal_to_the_bit(run, tmp_path):
    out = export(run, tmp_path / "export")
    trained, exported = small_model(tubelets=True), tttvideo.from_pretrained(out)
    frames = torch.randint(0, 256, (2, 9, 3, 32, 32), dtype=torch.uint8)
    lengths = torch.tensor([9, 4])
    with torch.no_grad():
        wanted, got = trained(frames, lengths)[0], exported(frames, lengths)[0]
    assert torch.equal(wanted.logits, got.logits)
    assert torch.equal(wanted.timeline, got.timeline)
    assert exported.labels == trained.labels
    assert exported.preprocessing == trained.preprocessing
    clip = noise_video(tmp_path / "clip.mp4", 11)
    assert exported.classify(clip) == trained.classify(clip)
    assert sorted(os.listdir(out)) == sorted(EXPORTED)
    assert os.listdir(tmp_path) == ["export", "clip.mp4"] or len(os.listdir(tmp_path)) == 2


def test_card_states_figures_split_and_rule(evaluated, tmp_path):
    card = (export(evaluated, tmp_path / "export") / "README.md").read_text()
    matter = front_matter(card)
    assert matter["library_name"] == "tttvideo"
    assert matter["pipeline_tag"] == "video-classification"
    (entry,) = matter["model-index"]
    assert entry["name"] == "demo"
    metrics = json.loads((evaluated / "metrics.json").read_text())
    stated = [metric["value"] for result in entry["results"] for metric in result["metrics"]]
    assert stated == [round(row["top1"], 4) for row in metrics["results"]]
    assert {result["dataset"]["split"] for result in entry["results"]} == {"val"}
    assert "chosen by highest val top1 (0.25) on split val" in card
    assert "Data `flashes`, split `val`: 6 videos; chance 0.167" in card
    assert re.search(r"^\| 8 \| dense \|", card, re.MULTILINE)
    assert "32 x 32 pixels" in card
    assert "tttvideo.from_pretrained" in card


def test_paths_of_this_machine_stay_here(evaluated, tmp_path):
    out = export(evaluated, tmp_path / "export")
    for name in ("README.md", "config.json"):
        assert str(evaluated.parent.parent) not in (out / name).read_text()
        assert "flashes/val" in (out / name).read_text()


def test_figures_of_other_weights_are_not_stated(evaluated, tmp_path):
    other = small_run(tmp_path / "other", small_model())
    metrics = evaluated / "metrics.json"
    (other / "metrics.json").write_text(metrics.read_text())
    card = (export(other, tmp_path / "export") / "README.md").read_text()
    assert "No evaluation of these weights" in card
    with pytest.raises(ExportError, match="measured with other weights"):
        export(other, tmp_path / "export", metrics=[metrics])
    with pytest.raises(ExportError, match=r"is no metrics\.json"):
        export(other, tmp_path / "export", metrics=[evaluated / "config.yaml"])


def test_an_export_can_be_exported_and_evaluated(evaluated, tmp_path):
    first = export(evaluated, tmp_path / "first")
    second = export(first, tmp_path / "second")
    for name in ("config.json", "model.safetensors", "labels.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    data = small_set(tmp_path / "data", count=6)
    metrics = evaluate(first, data).metrics
    assert metrics["selection"]["rule"] == "highest val top1"


def test_only_an_earlier_export_is_overwritten(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="is not empty and holds no export"):
        export(run, out)
    with pytest.raises(ExportError, match="is a file"):
        export(run, out / "thesis.tex")
    with pytest.raises(ExportError, match="is not empty and holds no export"):
        export(run, run / "checkpoints" / "step-00000010")
    assert (out / "thesis.tex").read_text() == "years of work"
    (out / "thesis.tex").unlink()
    export(run, out)
    (out / "notes.txt").write_text("kept")
    (out / "README.md").write_text("replaced")
    export(run, out)
    assert (out / "notes.txt").read_text() == "kept"
    assert "replaced" not in (out / "README.md").read_text()


def test_a_copy_that_computes_something_else_is_refused(run, tmp_path, monkeypatch):
    import tttvideo.export.folder as module

    def altered(folder, *, trust=False):
        model = tttvideo.from_pretrained(folder, trust=trust)
        if "checkpoints" not in str(folder):
            with torch.no_grad():
                model.head.classifier.bias += 1e-3
        return model

    monkeypatch.setattr(module, "from_pretrained", altered)
    with pytest.raises(ExportError, match="does not compute what the checkpoint computes"):
        export(run, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_files_are_readable_by_others(run, tmp_path):
    before = os.umask(0o022)
    try:
        out = export(run, tmp_path / "export")
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o755
    assert all((out / name).stat().st_mode & 0o777 == 0o644 for name in EXPORTED)


def test_what_a_killed_export_left_goes_with_the_next(run, tmp_path):
    (tmp_path / ".unfinished-export").mkdir()
    (tmp_path / ".unfinished-export" / "model.safetensors").write_bytes(b"half")
    export(run, tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
