import pytest
import torch

from tttvideo.video.sampling import Dense, Last, Segments, Uniform, Window, parse_sampling

CONSTANT = torch.arange(100, dtype=torch.float64) / 25  # 4 s at 25 frames/s
MILLISECONDS = torch.round(torch.arange(90, dtype=torch.float64) * 1000 / 30) / 1000  # 30 frames/s as Matroska says it
# 2 s at 10 frames/s, then 2 s at 50 frames/s
VARIABLE = torch.cat([torch.arange(20) / 10, 2 + torch.arange(100) / 50]).double()
ALL_RULES = [
    Dense(), Dense(1), Dense(7.3), Dense(1000), Uniform(1), Uniform(16), Segments(8), Segments(1),
    Window(1.5), Last(1), Last(30),
]  # fmt: skip
ALL_TIMES = [CONSTANT, MILLISECONDS, VARIABLE, CONSTANT[:1], CONSTANT[:2], CONSTANT[:5]]


@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
@pytest.mark.parametrize("times", ALL_TIMES, ids=lambda t: f"F{len(t)}")
@pytest.mark.parametrize("random", [False, True])
def test_every_rule_gives_frames_of_the_video_in_order_and_none_twice(rule, times, random):
    generator = torch.Generator().manual_seed(0) if random else None
    chosen = rule.indices(times, generator)
    assert chosen.dtype == torch.int64
    assert 1 <= len(chosen) <= len(times)
    assert (chosen.diff() > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < len(times)


def test_dense_is_every_frame():
    assert Dense().indices(CONSTANT).tolist() == list(range(100))


@pytest.mark.parametrize("rate", [30, 45, 60, 240, 1e9])
def test_fps_at_or_above_the_rate_gives_each_frame_once(rate):
    assert Dense(rate).indices(MILLISECONDS).tolist() == list(range(90))


def test_last_is_the_end():
    assert Last(3).indices(CONSTANT).tolist() == [97, 98, 99]
    assert Last(300).indices(CONSTANT).tolist() == list(range(100))
    assert parse_sampling("last=64") == Last(64)
    with pytest.raises(ValueError, match="last must be above 0"):
        parse_sampling("last=0")


def test_fps_counts_seconds_not_frames():
    assert Dense(1).indices(CONSTANT).tolist() == [0, 25, 50, 75]
    assert Dense(2).indices(VARIABLE).tolist() == [0, 5, 10, 15, 20, 45, 70, 95]


def test_uniform_spans_the_video_in_time():
    assert Uniform(5).indices(CONSTANT).tolist() == [0, 25, 49, 74, 99]
    assert Uniform(1).indices(CONSTANT).tolist() == [49]
    halves = VARIABLE[Uniform(9).indices(VARIABLE)]
    assert (halves < 2).sum() == pytest.approx(4.5, abs=0.5)


def test_segments_take_the_middle_or_a_random_frame_of_each():
    assert Segments(4).indices(CONSTANT).tolist() == [12, 37, 62, 87]
    draws = torch.stack([Segments(4).indices(CONSTANT, torch.Generator().manual_seed(s)) for s in range(200)])
    lower = torch.arange(4) * 25
    assert (draws >= lower).all()
    assert (draws < lower + 25).all()
    assert len(draws[:, 1].unique()) == 25  # every frame of a segment can be drawn


def test_window_is_contiguous_central_or_random():
    assert Window(1).indices(CONSTANT).tolist() == list(range(37, 62))
    draws = [Window(1).indices(CONSTANT, torch.Generator().manual_seed(s)) for s in range(300)]
    assert all(len(draw) == 25 and (draw.diff() == 1).all() for draw in draws)
    firsts = {int(draw[0]) for draw in draws}
    assert min(firsts) == 0
    assert max(firsts) == 75
    assert len(Window(10).indices(CONSTANT)) == 100


def test_the_generator_decides_and_the_global_one_is_left_alone():
    before = torch.random.get_rng_state()
    for rule in (Segments(8), Window(1.5)):
        a, b = (rule.indices(CONSTANT, torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(a, b)
        assert torch.equal(rule.indices(CONSTANT), rule.indices(CONSTANT))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
def test_text_and_rule_are_the_same(rule):
    assert parse_sampling(str(rule)) == rule


def test_numbers_may_have_exponents():
    for number in (1e12, 1e-5, 30):
        assert parse_sampling(str(Dense(float(number)))) == Dense(float(number))
    assert parse_sampling("fps=1e+2") == Dense(100.0)


@pytest.mark.parametrize(
    "text",
    ["", " ", "dense,fps=1", "uniform=4 segments=4", "every", "dense=3", "fps", "fps=0", "fps=-1", "fps=nan",
     "uniform=2.5", "uniform=0", "window=inf", "window=x"],
)  # fmt: skip
def test_no_rule_two_rules_and_wrong_rules_are_refused_with_the_list_of_rules(text):
    with pytest.raises(ValueError, match=r"exactly one of: dense, fps=.*, uniform=.*, segments=.*, window=") as caught:
        parse_sampling(text)
    assert "\n" not in str(caught.value)


def test_the_shortest_window_holds_a_frame_and_a_broken_number_is_named():
    times = torch.arange(5, dtype=torch.float64) / 10
    for generator in (None, torch.Generator().manual_seed(0)):
        assert len(parse_sampling("window=1e-7").indices(times, generator)) == 1
    for text, says in (("uniform=1.5", "uniform must be a whole number, not 1.5"), ("fps=x", "fps must be a number")):
        with pytest.raises(ValueError, match=says) as caught:
            parse_sampling(text)
        assert "literal" not in str(caught.value)
