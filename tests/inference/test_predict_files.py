"""`tttvideo predict` of many files: a film and a picture each, a row each, and a second call that goes on."""

import json

from tests.evaluation.small import noise_video, small_run
from tests.evaluation.test_forecasting import predictor
from tttvideo.cli import main


def test_a_folder_is_predicted_and_a_second_call_goes_on(tmp_path, capsys):
    run = small_run(tmp_path / "run", predictor())
    films, out = tmp_path / "films", tmp_path / "out"
    (films / "a").mkdir(parents=True)
    for i, name in enumerate(("a/x.mp4", "x.mp4", "short.mp4")):
        noise_video(films / name, 3 if name == "short.mp4" else 9, seed=i)
    (films / "bad.mp4").write_text("no video")
    words = ["predict", str(run), str(films), "--out", str(out), "--context", "4", "--horizon", "4"]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.err.count("error: ") == 2
    assert "short.mp4 has 3 frames" in shown.err
    rows = {row["path"]: row for row in map(json.loads, (out / "predictions.jsonl").read_text().splitlines())}
    assert len(rows) == 4
    written = {rows[str(films / name)]["film"] for name in ("a/x.mp4", "x.mp4")}
    assert written == {"x-predicted.mp4", "x-2-predicted.mp4"}
    assert all((out / name).stat().st_size for name in written)
    assert len(rows[str(films / "x.mp4")]["mse"]["model"]) == 4
    assert main(words) == 2  # as long as there are errors
    assert "0 predictions (0 failed; 4 were there, 2 of them with an error" in capsys.readouterr().out
    assert main([*words, "--horizon", "2"]) == 2
    assert "another kind (horizon: 4 there, 2 now)" in capsys.readouterr().err
