"""The fair comparison: what is trained in which order, how a rate is chosen, and that it goes on where it was."""

import copy
import json
import sys
from unittest.mock import Mock

import pytest
import yaml

from benchmarks import design, fair, fair_report, small
from benchmarks.design import list_variants

STUDY = small.read_study(fair.STUDY)


def row(job, top1=0.5, curve=(0.7, 0.7), loss=1.0, diverged_at=None):
    groups = {"1": 1.0, "4": top1, "16": 0.25}
    figures = {"top1": top1, "loss": loss, "hits": "5", "n": 4, "by": groups}
    measured = [{"length": factor} | figures for factor in STUDY["lengths"]]
    about = {"state_bytes": 4, "parameters": 9, "cpu_seconds": 6.0, "steps": 3}
    return job._asdict() | {
        "times": job.steps,
        "measured": measured,
        "curve": list(curve),
        "diverged_at": diverged_at,
        **about,
    }


def test_the_order_of_the_study(tmp_path):
    study = copy.deepcopy(STUDY)
    study["tasks"]["flash-recall"]["times"] = [1, 2]
    rows, seen = [], []
    variants = [v for v, own in study["variants"].items() if "flash-recall" in own.get("tasks", ["flash-recall"])]
    while (job := next(fair.jobs(study, rows, "flash-recall"), None)) is not None:
        seen.append(job)
        best = {2.4e-2: 0.9} if job.variant == "GRU" else {1.5e-3: 0.5, 3.0e-3: 0.9, 6.0e-3: 0.9}
        if "of" in study["variants"][job.variant]:
            best = {3.0e-3: 0.8}
        top1 = best.get(job.rate, 0.4)
        flat = job.steps == 2 or job.variant != "Mamba-2"
        rows.append(row(job, top1, (0.7, 0.7 if flat else 0.8), loss=job.rate))
    trials = 5 * len(study["first"]) + 1  # GRU's largest is best, so that a wider one comes
    many = trials + 3 * len(study["first"]) + 3  # three seeds; Mamba-2 thrice more
    first, others = seen[:many], seen[many:]
    rest = [v for v in variants if v not in study["first"]]
    for part, names, number in ((first, study["first"], trials), (others, rest, 5 * len(rest))):
        assert {job.variant for job in part} == set(names)
        tried, reported = part[:number], part[number:]
        assert {(job.task, job.seed) for job in tried} == {("flash-recall-four", 100)}
        assert [job.seed for job in reported] == sorted(job.seed for job in reported)
        assert {job.seed for job in reported} == {0, 1, 2}
        without = {v for v in names if study["variants"][v].keys() & {"only_rates", "of"}}  # none better than its layer
        assert {job.variant for job in reported} == set(names) - without
        # of two equals that with the smaller loss
        assert all(job.rate == (2.4e-2 if job.variant == "GRU" else 3.0e-3) for job in reported)
    of_gru = [job.rate for job in first if (job.variant, job.seed) == ("GRU", 100)]
    assert of_gru == [1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2, 4.8e-2]
    longer = [job for job in seen if job.steps == 2]
    assert [(job.variant, job.seed) for job in longer] == [("Mamba-2", seed) for seed in (0, 1, 2)]
    assert 100 not in study["seeds"]
    assert [r["times"] for r in fair.reported(study, rows, "flash-recall", "Mamba-2")] == [2, 2, 2]
    text = fair_report.table(study, rows)
    assert "## flash-recall: reported seeds" in text
    cells = ["Mamba-2", "-", "0.500 (0.500)", *["0.900 (0.900)"] * 2, *["0.400 (0.400)"] * 2, "-", "-", "0.003"]
    assert f"| {' | '.join(cells)} |" in text
    assert "+0.000 (" in text
    fewer = [r for r in rows if (r["variant"], r["seed"]) != ("GRU", 2)]  # compared on the two seeds that both have
    assert "| GRU | 0.024 | 2 |" in fair_report.table(study, fewer)
    page = tmp_path / "recall.md"
    page.write_text("Before.\n<!-- rows of flash-recall -->\nold\n<!-- end of flash-recall -->\nAfter.\n")
    fair_report.publish(study, rows, tmp_path / "fair.md")
    assert page.read_text().startswith("Before.\n<!-- rows of flash-recall -->\n| layer | rate | seeds | 64 frames |")
    assert (
        "| 512 frames | pairs: 1 (64 frames) | pairs: 4 (64 frames) | pairs: 16 (64 frames) | minus TTT-MLP, 64 frames "
        "| minus TTT-MLP, 512 frames |"
    ) in page.read_text()
    assert "| 0.900 | 1.000 | 0.900 | 0.250 | - | - |" in page.read_text()
    assert page.read_text().endswith("](fair-flash-recall.png)\n<!-- end of flash-recall -->\nAfter.\n")
    assert (tmp_path / "fair-flash-recall.png").read_bytes()[:4] == b"\x89PNG"


def test_only_rates_is_said_of_a_task():
    """Without convolution TTT-MLP has reported seeds where its ``only_rates`` does not name the task."""
    name, rates = "TTT-MLP without convolution", STUDY["rates"]
    tried = [row(fair.Job("flash-order-16", name, 100, rate), loss=abs(rate - 3e-3)) for rate in rates]
    tried += [row(fair.Job("flash-recall-four", name, 100, rate), loss=abs(rate - 3e-3)) for rate in rates]
    seeds = {
        task: [job.seed for job in fair.jobs(STUDY, tried, task) if job.variant == name] for task in STUDY["choice"]
    }
    assert seeds == {"flash-order-16": [0, 1, 2], "flash-order": [0, 1, 2], "flash-recall": [], "revisit": []}


def test_a_variant_has_seeds_where_it_is_better_than_the_variants_before_it():
    layer, names = "Gated DeltaNet", ["Gated DeltaNet raster", "Gated DeltaNet without convolution"]
    for tops, expected in {(0.5, 0.4): [], (0.8, 0.7): names[:1], (0.7, 0.8): names, (0.5, 0.8): names[1:]}.items():
        rows = [
            row(fair.Job("flash-recall-four", variant, 100, rate), top1, loss=abs(rate - 3e-3))
            for variant, top1 in zip([layer, *names], (0.6, *tops), strict=True)
            for rate in STUDY["rates"]
        ]
        seeds = [job.variant for job in fair.jobs(STUDY, rows, "flash-recall") if job.seed in STUDY["seeds"]]
        assert sorted(seeds) == sorted([layer, *expected] * 3), tops


def test_a_level_without_memory_is_not_flat():
    """Training that has not begun to remember does not rise either."""
    job = fair.Job("flash-order", "GRU", 0, 3.0e-3)
    curves = {(0.7, 0.7): True, (0.7, 0.73): False, (0.55, 0.56): False, (0.9, 0.85): True, (0.7,): False}
    curves |= {(*[0.9] * 8, 0.99): True, (*[0.9] * 7, 0.95, 0.94): False}  # 300 steps are eight parts and 4 steps
    short = job._replace(task="flash-order-16")
    assert {curve: fair.is_flat(STUDY, row(short, curve=curve)) for curve in curves} == curves
    assert not fair.is_flat(STUDY, row(job, curve=(0.8, 0.8))), "on long clips below 0.9 it was not learned"
    assert fair.is_flat(STUDY, row(job, curve=(0.95, 0.95)))
    rows = [row(fair.Job("flash-order-16", "GRU", 100, rate), loss=abs(rate - job.rate)) for rate in STUDY["rates"]]
    rows += [row(job._replace(steps=n), curve=(0.3, 0.3)) for n in (1, 2)]
    steps = [
        j.steps
        for j in fair.jobs(STUDY, rows, "flash-order")
        if (j.variant, j.seed, j.task) == ("GRU", 0, "flash-order")
    ]
    assert steps == [4]


def test_a_rate_that_diverged_is_not_chosen():
    jobs = [fair.Job("flash-order-16", "GRU", 100, rate) for rate in STUDY["rates"]]
    rows = [row(jobs[0], 0.6), row(jobs[1], 0.7), *(row(job, 0.9, diverged_at=5) for job in jobs[2:])]
    assert fair.chosen_rate(STUDY, rows[:2], "flash-order-16", "GRU") is None
    for task in ("flash-order-16", "flash-order"):
        assert fair.chosen_rate(STUDY, rows, task, "GRU") == 3.0e-3


def test_a_largest_rate_is_not_the_best_before_a_larger_one_was_tried():
    rows, tried = [], []
    while (job := next(fair.jobs(STUDY, rows, "flash-order"), fair.Job("", "", 0, 0))).variant == STUDY["first"][0]:
        if job.seed != 100:
            break
        tried.append(job.rate)
        rows.append(row(job, {2.4e-2: 0.8, 4.8e-2: 0.9}.get(job.rate, 0.5)))
    assert tried == [*STUDY["rates"], 4.8e-2, 9.6e-2]
    assert fair.chosen_rate(STUDY, rows, "flash-order", STUDY["first"][0]) == 4.8e-2
    (line,) = [line for line in fair_report.rates(STUDY, rows) if line.startswith(f"| {STUDY['first'][0]} |")]
    assert line.endswith("| 0.900 (0.900) | 0.500 (0.500) | 0.048 |")


def test_a_rate_is_chosen_by_all_lengths():
    """At the length of training many rates reach 1.0, and not all of them carry as far."""
    jobs = [fair.Job("flash-order-16", "GRU", 100, rate) for rate in STUDY["rates"]]
    rows = [row(job, 0.8) for job in jobs]
    by_length(rows[2], 1.0, 0.9, 0.7, 0.5)
    by_length(rows[3], 0.95, 0.9, 0.85, 0.8)
    assert fair.chosen_rate(STUDY, rows, "flash-order", "GRU") == STUDY["rates"][3]
    other = row(jobs[0]._replace(rate=9.0), 1.0)  # of a study that had other rates
    assert fair.chosen_rate(STUDY, [*rows, other], "flash-order", "GRU") == STUDY["rates"][3]
    assert fair.chosen_rate(STUDY, [*rows[1:], other], "flash-order", "GRU") is None


def test_a_rate_of_recall_is_chosen_at_the_length_of_training():
    """Over all lengths a rate that has learned no pair can be ahead of one that has."""
    rows = [row(fair.Job("flash-order-16", "GRU", 100, rate), 0.8) for rate in STUDY["rates"]]
    rows += [row(fair.Job("flash-recall-four", "GRU", 100, rate), 0.3) for rate in STUDY["rates"]]
    by_length(rows[-3], 0.41, 0.41, 0.41, 0.41)
    by_length(rows[-2], 0.9, 0.2, 0.1, 0.1)
    assert fair.chosen_rate(STUDY, rows, "flash-recall", "GRU") == STUDY["rates"][-2]


def by_length(row, *accuracies):
    for measured, top1 in zip(row["measured"], accuracies, strict=True):
        measured["top1"] = top1


def test_layers_have_equal_parameters_and_state(capsys):
    """Numbers of the hidden state that can be written: 4,096 in a layer, ours with its biases 3 % more, or fewer."""
    from benchmarks.design import build, plan, suite_of
    from benchmarks.small import VAL_SEED

    suite, counts, sizes = suite_of(STUDY, "flash-order", VAL_SEED), {}, {}
    for variant in STUDY["variants"]:
        model = build(plan(STUDY, "flash-order", variant), suite)
        counts[variant] = small.count(model)
        state = model.backbone.blocks[0].mixer.init_state(1)
        for name in ("weights", "memory", "ssm", "sums"):
            if (kept := getattr(state, name, None)) is not None:
                sizes[variant] = sum(t.numel() for t in fair.torch.utils._pytree.tree_leaves(kept) if t is not None)
    assert counts == pytest.approx(dict.fromkeys(counts, counts[fair.BASE]), rel=0.01)
    ours = dict.fromkeys(["TTT-MLP", "TTT-MLP without convolution", "TTT-MLP raster"], 4096 + 128)
    ours |= dict.fromkeys(["TTT-conv depthwise", "TTT-conv depthwise raster"], 2752)
    assert {variant: sizes.pop(variant) for variant in ours} == ours
    assert set(sizes.values()) == {4096}
    unsized = [variant for variant in counts if variant.startswith(("attention", "GRU", "LSTM"))]
    assert len(sizes) == len(counts) - len(ours) - len(unsized)
    list_variants(STUDY, ["flash-order"], ["GRU"])
    assert "parameters" in capsys.readouterr().out


def test_a_training_that_was_killed_goes_on_to_the_bit(tmp_path, monkeypatch):
    task = {"suite": "flash-order", "parameters": {"frames": 6}, "steps": 3, "val": 4}
    task["curriculum"] = [{"steps": 2, "parameters": {"frames": 4}}]
    own = STUDY | {"tasks": {"order": task}, "lengths": [1]}
    whole, whole_row = design.fit(own, "order", "GRU", 0)
    for killed_at in (1, 4):
        file = tmp_path / f"{killed_at}.unfinished"
        with monkeypatch.context() as patch:
            patch.setattr(design.VideoModel, "set_inner_rate", Mock(side_effect=[None] * killed_at))
            with pytest.raises(StopIteration):
                design.fit(own, "order", "GRU", 0, small.Partial(file, "a", seconds=0))
        assert file.exists()
        fair.torch.manual_seed(9)
        again, row = design.fit(own, "order", "GRU", 0, small.Partial(file, "a"))
        assert row["curve"] == whole_row["curve"]
        assert all(fair.torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
        assert small.Partial(file, "another's").load(again, None) == ([], 0.0, 0.0)
        file.write_bytes(file.read_bytes()[:200])
        assert small.Partial(file, "a").load(again, None) == ([], 0.0, 0.0)


def test_prediction_is_compared_by_errors(tmp_path, monkeypatch, capsys):
    """The least error is the best rate; a loss that falls no more is flat; clips are paired."""
    task = STUDY["tasks"]["revisit"] | {"steps": 2, "val": 2, "measured": 60, "times": [1]}
    study = STUDY | {"tasks": {"revisit": task}, "choice": {"revisit": "revisit"}, "laps": [0, 1, 3], "first": []}
    study |= {"rates": [1e-3, 2e-3], "wider": [], "seeds": [0]}
    study["variants"] = {"TTT-MLP": {}, "GRU": STUDY["variants"]["GRU"]}
    real = fair.run(study, fair.Job("revisit", "GRU", 100, 1e-3))
    measured = real["measured"][0]
    assert measured["n"] == len(measured["errors"]) == 2
    assert measured["error"] == pytest.approx(sum(measured["errors"]) / 2, abs=1e-5)
    assert len(measured["by_lap"]) == 9  # of 63 columns, in laps of 6 and 7: both clips have nine
    assert 0.03 < measured["by_lap"][0] < 0.3
    errors = {("GRU", 1e-3): 0.5, ("GRU", 2e-3): 0.25, ("TTT-MLP", 1e-3): 0.1, ("TTT-MLP", 2e-3): 0.2}

    def made_of(variant, seed, rate, error):
        row = real | {"variant": variant, "seed": seed, "rate": rate}
        return row | {"measured": [measured | {"error": error, "errors": [error, error]}]}

    rows = [made_of(variant, 100, rate, error) for (variant, rate), error in errors.items()]
    assert [fair.chosen_rate(study, rows, "revisit", v) for v in ("GRU", "TTT-MLP")] == [2e-3, 1e-3]
    rows += [made_of("GRU", 0, 2e-3, 0.3), made_of("TTT-MLP", 0, 1e-3, 0.1)]
    text = fair_report.table(study, rows)
    assert "| error in lap 1 | error in lap 2 | error in lap 4 | minus TTT-MLP, all laps after the first |" in text
    assert "| GRU | 0.5000 | 0.2500 | 0.002 |" in text
    assert "+0.2000 (+0.2000 to +0.2000)" in text
    figure = fair_report.drawn(study, rows, "revisit")
    assert figure["series"]["GRU"]["mean"] == [measured["by_lap"][lap] for lap in (0, 1, 3)]
    fair_report.publish(study, rows, tmp_path / "fair.md")
    assert (tmp_path / "fair-revisit.png").exists()
    files = [tmp_path / "study.yaml", tmp_path / "rows.jsonl"]
    files[0].write_text(yaml.safe_dump(study))
    files[1].write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    monkeypatch.setattr(sys, "argv", ["fair", "--study", str(files[0]), "--rows", str(files[1])])
    fair.main()  # trains the one that is missing
    last = small.read_rows(files[1])[-1]
    error = last["measured"][0]["error"]
    assert f"variant='TTT-MLP', seed=0, rate=0.001, steps=1) [{error}]" in capsys.readouterr().out
    curves = {(0.2, 0.19): True, (0.2, 0.17): False, (0.42, 0.42): False}  # the last remembers nothing
    assert {curve: fair.is_flat(study, real | {"curve": list(curve)}) for curve in curves} == curves


def test_two_steps_and_on_from_there(tmp_path, monkeypatch, capsys):
    small_study = STUDY | {
        "rates": [1e-3, 2e-3],
        "wider": [],
        "seeds": [0],
        "lengths": [1, 2],
        "choice": {"order": "order"},
        "tasks": {"order": {"suite": "flash-order", "parameters": {"frames": 6}, "steps": 2, "times": [1], "val": 4}},
        "variants": {"TTT-MLP": {}, "GRU": STUDY["variants"]["GRU"]},
        "first": ["GRU"],
    }
    study, rows = tmp_path / "study.yaml", tmp_path / "rows.jsonl"
    study.write_text(yaml.safe_dump(small_study))
    words = ["fair", "--study", str(study), "--rows", str(rows)]

    def run(*more):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        fair.main()
        return capsys.readouterr().out

    assert run("--dry").count("seed 100") == 4
    run()
    lines = rows.read_text().splitlines()
    assert len(lines) == 6
    assert len(json.loads(lines[-1])["measured"]) == 2
    assert json.loads(lines[-1])["commit"] == small.commit()
    rows.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])  # stopped while it wrote
    assert run("--dry").count("\n") == 1
    run()
    assert len(small.read_rows(rows)) == 6
    assert rows.read_text().count("\n") == 7  # the torn line has not taken another with it
    run("--table", str(tmp_path / "table.md"))
    assert "| GRU |" in (tmp_path / "table.md").read_text()


def test_rates_are_not_chosen_on_the_clips_that_are_reported(monkeypatch):
    """But on flash-order-16, whose rows are older than that rule."""
    val_seeds = {}

    def train_row(study, task, variant, seed, partial):
        val_seeds[task, seed] = study.get("val_seed", small.VAL_SEED)
        return {}

    monkeypatch.setattr(fair.long_clip, "train_row", train_row)
    monkeypatch.setattr(fair.laps, "train_row", train_row)
    for task, seed in (
        ("flash-order-16", 100),
        ("flash-recall-four", 100),
        ("flash-recall", 0),
        ("revisit", 100),
        ("revisit", 0),
    ):
        fair.run(STUDY, fair.Job(task, "GRU", seed, 3e-3))
    others = {task for (task, _), val_seed in val_seeds.items() if val_seed != small.VAL_SEED}
    assert others == {"flash-recall-four", "revisit"}
    assert val_seeds["revisit", 0] == small.VAL_SEED


def test_a_task_alone_begins_with_the_choice_that_its_rates_rest_on():
    trials = list(fair.jobs(STUDY, [], "flash-recall"))
    assert {(job.task, job.seed) for job in trials} == {("flash-recall-four", 100)}
    variants = [v for v, own in STUDY["variants"].items() if "flash-recall" in own.get("tasks", ["flash-recall"])]
    assert len(trials) == len(variants) * len(STUDY["rates"])


def test_more_seeds_of_some_layers():
    """After the study's; all of them are reported, and are what a layer is taken with at its best."""
    study = copy.deepcopy(STUDY)
    study["variants"]["attention raster"]["more_seeds"] = {"flash-recall": [3, 4]}
    rows, seen = [], []
    names = ["attention", "attention raster", "GRU"]
    while job := next((job for job in fair.jobs(study, rows, "flash-recall") if job.variant in names), None):
        seen.append(job)
        rows.append(row(job, 0.9 if job.variant == "attention raster" and job.seed != 3 else 0.6))
    last = [(job.variant, job.seed) for job in seen if job.seed != 100][-5:]
    assert last == [("attention raster", seed) for seed in (0, 1, 2, 3, 4)]
    for left, seeds in ((rows, [0, 1, 2, 3, 4]), (rows[:-1], [0, 1, 2, 3])):
        best = fair.at_their_best(study, left, "flash-recall")["attention"]
        assert [(row["variant"], row["seed"]) for row in best] == [("attention raster", seed) for seed in seeds]
    assert [row["seed"] for row in fair.reported(study, rows, "flash-recall", "GRU")] == [0, 1, 2]
    assert fair.reported(study, rows, "flash-order", "attention raster") == []
