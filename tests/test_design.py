"""The design study: variants have the base's parameters, rows are kept, controls take away what they say."""

import pytest
import torch

from benchmarks import design, small
from tttvideo.ttt.interface import Layout

STUDY = small.read_study(design.STUDY)
SMALL = {
    "rows": "unused",
    "seeds": [0],
    "base": STUDY["base"] | {"data": {"batch_size": 2}},
    "tasks": {
        "recall": {
            "suite": "flash-recall",
            "parameters": {"frames": 8, "query": 2, "pairs": 1},
            "steps": 2,
            "val": 3,
        }
    },
    "variants": {
        "base": {"controls": True},
        "inner Linear": {"settings": {"model.backbone.mixer.inner": "Linear"}},
        "forgetful": {"reset_frames": 1},
    },
}


def test_variants_have_the_parameters_of_the_base():
    task = next(iter(STUDY["tasks"]))  # they differ in their clips
    suite = design.suite_of(STUDY, task, 0)
    counts = {v: small.count(design.build(design.plan(STUDY, task, v), suite)) for v in STUDY["variants"]}
    assert counts == pytest.approx(dict.fromkeys(counts, counts["base"]), rel=0.002)


def test_variants_differ():
    models = {repr(design.settings(STUDY, "flash-order", v).model) for v in STUDY["variants"]}
    same_model = [v for v, options in STUDY["variants"].items() if "settings" not in options]  # base and resets
    assert len(models) == len(STUDY["variants"]) - len(same_model) + 1


def model_and_clips(batch=3):
    torch.manual_seed(0)
    suite = design.suite_of(SMALL, "recall", 0)
    model = design.build(design.settings(SMALL, "recall", "base"), suite).double().eval()
    return model, design.clips(suite, "val", range(batch))


def test_forgetting_is_reading_in_pieces():
    model, _ = model_and_clips()
    x = torch.randn(3, 8 * 4, 64, dtype=torch.float64)
    layout = Layout((2, 2))
    out, _ = design.Forgetful(model.backbone, 2)(x, model.backbone.init_state(3), layout)
    pieces = [model.backbone(piece, None, layout)[0] for piece in x.split(2 * 4, dim=1)]
    torch.testing.assert_close(out, torch.cat(pieces, dim=1), rtol=0, atol=1e-12)


def test_controls_take_something_away_and_give_it_back():
    model, (frames, _) = model_and_clips()
    with torch.no_grad():
        whole = model(frames)[0].logits
        answers = {name: model(frames)[0].logits for name in design.controls(model)}
        torch.testing.assert_close(model(frames)[0].logits, whole, rtol=0, atol=0)
    assert list(answers) == ["q and k swapped", "inner rate 0", "state reset each frame"]
    assert all((logits - whole).abs().max() > 1e-6 for logits in answers.values())


def test_rows_are_appended_and_tabled_and_a_variant_that_cannot_be_built_does_not_end_the_study(tmp_path):
    file = tmp_path / "rows.jsonl"
    todo = [("recall", variant, 0) for variant in SMALL["variants"]]
    study = SMALL | {"variants": SMALL["variants"] | {"wrong": {"settings": {"model.backbone.mixer.heads": 7}}}}
    (failed,) = small.run_all(design.train_row, study, [("recall", "wrong", 0), *todo], file, jobs=1)
    assert "wrong" in failed
    with file.open("a") as stream:
        stream.write('{"task": "recall", "vari')  # cut off by a crash
    rows = small.read_rows(file)
    assert sorted(map(design.key, rows)) == sorted(todo)
    for row in rows:
        assert 0 <= row["val_top1"] <= 1
        assert row["diverged_at"] is None
        assert len(row["curve"]) == 2
    text = design.table(SMALL, rows)
    lines = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert lines == [
        "| variant",
        "| base",
        "| base, trained; then q and k swapped",
        "| base, trained; then inner rate 0",
        "| base, trained; then state reset each frame",
        "| inner Linear",
        "| forgetful",
    ]
    assert "Ceiling 1.000, chance 0.125" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--study", "nope.yaml", "--list"], "--study nope.yaml cannot be read"),
        (["--rows", "nope.jsonl"], "there is no"),
    ],
)
def test_a_table_is_not_overwritten_by_a_mistake(words, said, tmp_path, monkeypatch, capsys):
    file = tmp_path / "table.md"
    file.write_text("figures")
    monkeypatch.setattr("sys.argv", ["study", *words, "--table", str(file)])
    with pytest.raises(SystemExit):
        design.main()
    assert said in capsys.readouterr().err
    assert file.read_text() == "figures"


def test_the_same_row_is_the_same_number():
    first, second = (design.train_row(SMALL, "recall", "inner Linear", 1) for _ in range(2))
    assert (first["val_loss"], first["curve"]) == (second["val_loss"], second["curve"])
