"""What each option of the TTT layer does, one at a time."""

import pytest
import torch

from tests.helpers import DIM, GRID, N, build, distance
from tttvideo.ttt import GLU, MLP, TTT, FrameCausal, Layout, Learning, Linear, Momentum, Muon, Whole


@pytest.mark.parametrize("forget", [False, True])
def test_frames_per_chunk_do_not_change_the_first_frame(forget):
    """Within one chunk the gradients are taken at the same weights, so its first frame cannot differ."""
    x = torch.randn(1, 4 * N, DIM).double()
    one = build(TTT(heads=2, chunk=FrameCausal(1), forget=forget))
    four = build(TTT(heads=2, chunk=FrameCausal(4), forget=forget))
    a, b = one(x, None, Layout(GRID))[0], four(x, None, Layout(GRID))[0]
    assert (a[:, :N] - b[:, :N]).abs().max() <= 1e-12
    assert (a[:, N:] - b[:, N:]).abs().max() > 1e-6


def test_a_step_does_not_depend_on_how_many_tokens_a_frame_is_cut_into():
    """In frame mode it is the mean over the frame: every token twice changes nothing."""
    layer = build(TTT(heads=2, rope=False))
    x = torch.randn(1, 3, DIM).double()
    _, coarse = layer(x, None, Layout((1, 1)))
    _, fine = layer(x.repeat_interleave(4, 1), None, Layout((2, 2)))
    assert distance(coarse.weights, fine.weights) <= 1e-12


def test_every_view_has_a_rate_of_its_own():
    layer = build(TTT(heads=2, views=2))
    with torch.no_grad():
        layer.project.rate.bias[2:] = -1e9  # of the second view: sigmoid 0
    x = torch.randn(1, 2 * N, DIM).double()
    before = layer(x, None, Layout(GRID))[0]
    with torch.no_grad():
        layer.project.v_proj.weight[DIM:] += 1.0
    assert torch.equal(before, layer(x, None, Layout(GRID))[0])
    with torch.no_grad():
        layer.project.v_proj.weight[:DIM] += 1.0
    assert not torch.equal(before, layer(x, None, Layout(GRID))[0])


def test_tanh_gate_scales_the_output():
    gated, plain = build(TTT(heads=2, tanh_gate=0.1)), build(TTT(heads=2))
    plain.load_state_dict({key: value for key, value in gated.state_dict().items() if key != "alpha"})
    x = torch.randn(1, 2 * N, DIM).double()
    y, expected = gated(x, None, Layout(GRID))[0], plain(x, None, Layout(GRID))[0]
    assert (y - expected * torch.tanh(gated.alpha)).abs().max() <= 1e-14
    shut = TTT(heads=2, tanh_gate=0.0).build(DIM)
    assert (shut(x.float(), None, Layout(GRID))[0] == 0).all()


def test_normalized_q_and_k_have_unit_length():
    layer = build(TTT(heads=2, normalize_qk=True))
    tokens, _ = layer._tokens(torch.randn(1, N, DIM).double(), {}, 0, Layout(GRID))
    for x in (tokens.q, tokens.k):
        assert (x.norm(dim=-1) - 1).abs().max() <= 1e-12


def test_short_convolutions_along_time_see_one_place_of_the_frame():
    layer = build(TTT(heads=2, short_conv="time", conv_values=True))
    x = torch.randn(1, 4 * N, DIM).double()
    changed = x.clone()
    changed[:, N + 2] += 1.0  # place 2 of frame 1
    tokens, others = (layer._tokens(t, layer.init_state(1).tails, 0, Layout(GRID))[0] for t in (x, changed))
    for one, other in zip(tokens[:3], others[:3], strict=True):  # q [B, H, T, d], k and v [B, H, 1, T, d]
        differs = (one - other).abs().amax(-1).flatten(0, -2).amax(0) > 0
        assert differs.nonzero().flatten().tolist() == [N + 2, 2 * N + 2, 3 * N + 2]


def test_inner_rate_zero_freezes_the_hidden_state():
    layer = build(TTT(inner=Linear(), heads=2))
    layer.rate_warmup = 0.0
    _, state = layer(torch.randn(1, 3 * N, DIM).double(), None, Layout(GRID))
    assert torch.equal(state.weights["1"].weight[0], layer.weights["1_weight"])


@pytest.mark.parametrize("optimizer", [Momentum, Muon])
def test_a_learned_momentum_is_the_mean_over_a_chunk(optimizer):
    learned = build(TTT(heads=2, chunk=Whole(2), optimizer=optimizer(momentum="learned")))
    fixed = TTT(heads=2, chunk=Whole(2), optimizer=optimizer(momentum=0.5)).build(DIM).double()
    fixed.load_state_dict({k: v for k, v in learned.state_dict().items() if not k.startswith("project.momentum")})
    x, layout = torch.randn(1, 6 * N, DIM).double(), Layout(GRID)
    free = learned(x, None, layout)
    with torch.no_grad():
        learned.project.momentum.weight.zero_()
        learned.project.momentum.bias.zero_()
    assert distance(learned(x, None, layout), fixed(x, None, layout)) <= 1e-12
    assert distance(free[1].weights, fixed(x, None, layout)[1].weights) > 1e-6
    x = torch.randn(1, 3 * N, DIM).double()  # a chunk and a half: the mean is over the tokens that there are
    assert distance(learned(x, None, layout), fixed(x, None, layout)) <= 1e-12


def test_a_start_of_low_rank():
    """left @ right + I / 2 in all maps but the last, LaCT's standard deviations; nothing else is learned of them."""
    torch.manual_seed(0)
    layer = TTT(inner=GLU(), heads=2, learning=Learning(start_rank=3)).build(64)
    names = [key for key, _ in layer.named_parameters() if key.startswith(("weights", "right"))]
    assert sorted(names) == sorted(
        ["weights.gate_weight", "weights.up_weight", "weights.down_weight", "right.gate_right", "right.up_right"]
    )
    start = layer.init_state(2).weights
    for key in ("gate", "up"):
        product = start[key].weight[0] - torch.eye(32, 64) / 2
        assert (torch.linalg.matrix_rank(product, atol=1e-5) == 3).all()
        assert layer.weights[f"{key}_weight"].std().item() == pytest.approx(0.5 * 32**-0.5, rel=0.2)
        assert layer.right[f"{key}_right"].std().item() == pytest.approx(0.5 * 3**-0.5, rel=0.2)
    assert (torch.linalg.matrix_rank(start["down"].weight[0]) == 32).all()


def test_default_inner_model_is_the_papers_mlp():
    assert TTT().inner == MLP(expansion=4)
