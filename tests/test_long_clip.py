"""The study of long clips: a row has every measurement, and is tabled and drawn."""

import json

import pytest
import torch

from benchmarks import design, long_clip, small

STUDY = small.read_study(long_clip.STUDY)
SMALL = STUDY | {
    "rows": "unused",
    "lengths": [1, 2],
    "samplings": ["fps=10", "last=6"],
    "base": STUDY["base"] | {"data": {"batch_size": 4}},
    "tasks": {
        "flash-recall": {
            "suite": "flash-recall",
            "parameters": {"frames": 12, "query": 4, "pairs": "1,2"},
            "steps": 2,
            "val": 16,
            "by": "pairs",
        }
    },
    "variants": {
        "TTT-MLP": {"controls": True},
        "sparse": {"sampling": "fps=10", "settings": {"model.backbone.mixer": "LSTM"}},
    },
}


def test_rows_have_every_measurement_and_are_tabled_and_drawn(tmp_path):
    found = [long_clip.train_row(SMALL, "flash-recall", variant, 0) for variant in SMALL["variants"]]
    rows = {row["variant"]: row for row in json.loads(json.dumps(found))}
    measured = rows["TTT-MLP"]["measured"]
    assert [(m["frames"], m["sampling"], m.get("control")) for m in measured] == [
        (12, "dense", None),
        (24, "dense", None),
        (12, "fps=10", None),
        (12, "last=6", None),
        *((12, "dense", control) for control in ("inner-rate-0", "reset", "shuffled")),
    ]
    assert [m["frames_read"] for m in measured[:4]] == [12, 24, 4, 6]
    assert [m["tokens_read"] for m in measured[:4]] == [48, 96, 16, 24]
    assert set(measured[0]["by"]) == {"1", "2"}
    assert sum(measured[0]["by"].values()) / 2 == pytest.approx(measured[0]["top1"], abs=1e-3)  # as many of each
    assert measured[0]["ceiling"] == 1.0 > measured[2]["ceiling"]
    assert [(m["frames"], m["frames_read"]) for m in rows["sparse"]["measured"]] == [(12, 4), (24, 8)]
    assert measured[1]["positions"]["frames"] == list(range(1, 25))
    assert measured[1]["positions"]["loss"][-1] == pytest.approx(measured[1]["loss"], abs=1e-3)
    assert rows["sparse"]["measured"][1]["positions"]["frames"] == [1, 4, 7, 10, 13, 16, 19, 22]
    text = long_clip.table(SMALL, list(rows.values()), tmp_path)
    assert "| variant | seeds | tokens read | carried on (kB) | 12 frames | 24 frames |" in text
    assert "| TTT-MLP | 1 | 48 | " in text
    assert "| variant | pairs 1, 12 frames | pairs 2, 12 frames | pairs 1, 24 frames | pairs 2, 24 frames |" in text
    assert "| ceiling | | | | 1.000 | 1.000 |" in text
    assert "| ceiling, fps=10 | | | | " in text
    assert "| variant | 12 frames, last 16 steps | 24 frames, last 16 steps |" in text
    assert "| variant | fps=10 (ceiling 0." in text
    assert "| variant | inner-rate-0 | reset | shuffled |" in text
    for name in ("length", "pairs", "position"):
        assert (tmp_path / f"long-clip-flash-recall-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_easier_clips_come_before_those_of_the_task():
    before = {"steps": 2, "parameters": {"frames": 8, "query": 2, "pairs": 1}}
    task = SMALL["tasks"]["flash-recall"] | {"curriculum": [before]}
    study = SMALL | {"tasks": {"flash-recall": task}}
    shown = [frames.shape[1] for frames, _ in design.batches(design.stages(task), 0, 4, "dense")]
    assert shown == [8, 8, 12, 12]
    assert design.fit(study, "flash-recall", "TTT-MLP", 0)[1]["steps"] == 4


def test_long_clips_are_read_as_a_stream():
    suite = design.suite_of(SMALL, "flash-recall", 0)
    model = design.build(design.settings(SMALL, "flash-recall", "TTT-MLP"), suite).double().eval()
    frames = torch.randint(0, 256, (2, 150, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(long_clip._read(model, frames).logits, model(frames)[0].logits)


def test_every_variant_of_the_study_can_be_built_at_equal_parameters():
    counts = {
        variant: small.count(
            design.build(design.plan(STUDY, "flash-recall", variant), design.suite_of(STUDY, "flash-recall", 0))
        )
        for variant in STUDY["variants"]
    }
    assert counts == pytest.approx(dict.fromkeys(counts, counts["TTT-MLP"]), rel=0.002)


def test_the_end_of_a_clip_is_read_alone():
    model = design.build(design.settings(SMALL, "flash-recall", "TTT-MLP"), design.suite_of(SMALL, "flash-recall", 0))
    model.double().eval()
    tokens = torch.randn(2, 5, 64, dtype=torch.float64)  # of one token each, for the head alone
    head = model.head
    _, timeline, _ = head.pool(tokens[:, :, None], None, head.init_state(2))
    for steps, used in ((2, tokens[:, 3:]), (5, tokens), (9, tokens)):
        expected = head.classifier(used.mean(1))
        torch.testing.assert_close(long_clip._ending(head, timeline.mT, steps), expected)


def test_losses_by_position_are_means_over_parts_of_a_long_clip():
    losses = torch.arange(100.0)
    found = long_clip._positions(losses, range(0, 200, 2))
    assert len(found["loss"]) == long_clip.POSITIONS
    assert found["frames"][0] == 7  # the fourth frame that is seen
    assert found["loss"][0] == 1.5
    assert found["frames"][-1] == 199
    assert found["loss"][-1] == 98
