"""Rotary positions: pairs are turned by the stated angles, whatever their layout in memory and the way of computing."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tttvideo.ttt import primitives

as_complex = primitives._as_complex
LAYOUTS = {
    "side by side": lambda x: x,
    "heads behind time": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "a part of the channels": lambda x: torch.cat([torch.zeros_like(x), x], -1)[..., x.shape[-1] :],
    "from an odd address": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "odd strides": lambda x: torch.nn.functional.pad(x, (0, 1))[..., :-1],
    "channels apart": lambda x: x.mT.contiguous().mT,
    "one row for all": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("compiling", [False, True], ids=["complex", "halves"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_are_turned(layout, batched, compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    complex_numbers = []
    monkeypatch.setattr(primitives, "_as_complex", lambda x: complex_numbers.append(x) or as_complex(x))
    x = LAYOUTS[layout](torch.randn(3, 2, 5, 6, dtype=torch.float64)).requires_grad_()
    positions = torch.randint(0, 1000, (3, 5) if batched else (5,))
    (y,) = primitives.rotate(positions, 100.0, x)
    assert bool(complex_numbers) != compiling
    angle = positions[..., None] * 100.0 ** -(torch.arange(3, dtype=torch.float64) / 3)
    turns = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    turns = turns[:, None] if batched else turns
    expected = (turns @ x.detach().unflatten(-1, (3, 2))[..., None]).flatten(-3)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    weight = torch.randn_like(y)
    (grad,) = torch.autograd.grad((y * weight).sum(), x)
    back = (turns.mT @ weight.unflatten(-1, (3, 2))[..., None]).flatten(-3)
    torch.testing.assert_close(grad, back, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_numbers_stay_as_they_are(dtype):
    x = torch.randn(2, 1, 4, 8)
    (y,), (precise,) = (primitives.rotate(torch.arange(4), 100.0, z) for z in (x.to(dtype), x))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), precise, rtol=0, atol=0.05)


def test_what_is_recorded_or_transformed_has_no_complex_numbers():
    x = torch.randn(3, 65, dtype=torch.float64)

    def turned(row):
        return primitives.rotate(torch.arange(4), 100.0, row[:64].view(2, 4, 8))[0]

    rows = torch.stack([turned(row) for row in x])
    torch.testing.assert_close(torch.vmap(turned)(x), rows, rtol=0, atol=1e-14)  # whose rows lie at odd distances
    graph = make_fx(turned)(x[0])
    torch.testing.assert_close(graph(x[1]), rows[1], rtol=0, atol=1e-14)
    assert "complex" not in graph.code
