"""The prediction study: models of equal size, rows that say what was measured, a report of one row per horizon."""

import copy
import json

import pytest

from benchmarks import prediction, small

STUDY = small.read_study(prediction.STUDY)


@pytest.mark.parametrize("name", STUDY["suites"])
def test_models_have_the_parameters_of_the_first(name):
    suite = prediction.suite_of(STUDY, name, 0)
    counts = {m: small.count(prediction.build(prediction.plan(STUDY, suite, m), suite.size)) for m in STUDY["models"]}
    assert counts == pytest.approx(dict.fromkeys(counts, counts["TTT-MLP"]), rel=0.002)


def test_a_row_and_its_report(tmp_path):
    study = copy.deepcopy(STUDY)
    described = study["suites"]["revisit"] | {"seconds": 0.01, "val": 3, "context": 6, "horizon": 4}
    described |= {"parameters": described["parameters"] | {"frames": 14}, "shown": [1, 4], "groups": [0, 1, 2]}
    described["train_frames"] = 8
    study["suites"] = {"revisit": described}
    study["models"] = {"no memory": study["models"]["no memory"]}
    row = json.loads(json.dumps(prediction.train_row(study, "revisit", "no memory", 0)))
    assert row["steps"] >= 1
    assert not row["diverged"]
    # a lap has 6 columns and a frame 4: from frame 3 on a column comes back
    assert len(row["revealed"]["mse"]["model"]) == 3
    assert row["revealed"]["mse"]["copy_last"][0] == pytest.approx(row["revealed"]["bounds"]["copy_last"], rel=0.5)
    flat = prediction.by_horizon([row])
    assert [r["horizon"] for r in flat] == [1, 2, 3, 4]
    wanted = {
        "suite",
        "model",
        "seed",
        "horizon",
        "mse",
        "psnr",
        "copy_last_mse",
        "mean_frame_mse",
        "parameters",
        "seconds",
    }
    assert wanted <= set(flat[0])
    assert flat[3]["mse"] == row["horizon"]["model"]["mse"][3]
    text = "\n".join(prediction.tables(study, [row]))
    assert f"| no memory | 1 | {row['steps']} | {row['horizon']['model']['mse'][0]:.1f} |" in text
    assert "| no_memory (expected) | 0.0840 | 0.0840 | 0.0840 |" in text
    described["drawn"] = ["no memory"]
    prediction.draw(study, [row], tmp_path)
    assert (tmp_path / "prediction-revisit.png").read_bytes().startswith(b"\x89PNG")
