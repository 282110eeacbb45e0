"""What happens between the matrix products, and the products themselves: device functions shared by all kernels.

Tiles hold tokens as rows. Everything is computed in the dtype of its arguments: float32, or float64 where tests ask
for it. Formulas are those of ``inner/activation.py`` and ``objective.py``; README.md derives them.
"""

import triton
import triton.language as tl

from ..derivatives import EPS, A, C

# constexpr stands right of a tensor: left of it, the interpreter makes the product a constexpr, too
GELU_A = tl.constexpr(A)
GELU_C = tl.constexpr(C)
NORM_EPS = tl.constexpr(EPS)


@triton.jit
def mm(a, b, MODE: tl.constexpr):
    """a @ b, accumulated in the dtype of ``a``.

    ``MODE`` says what the tensor cores read: "bf16" operands rounded to bfloat16, "tf32" to TensorFloat-32, "ieee" as
    they are.
    """
    if MODE == "bf16":
        product = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), out_dtype=tl.float32)
    else:
        product = tl.dot(a, b, input_precision=MODE, out_dtype=a.dtype)
    return product


@triton.jit
def gelu(x):
    return x * tl.sigmoid(x * GELU_C * (1.0 + x * x * GELU_A))


@triton.jit
def gelu_slope(x):
    """gelu'(x) = s + s (1 - s) x u'."""
    s = tl.sigmoid(x * GELU_C * (1.0 + x * x * GELU_A))
    return s + s * (1.0 - s) * x * GELU_C * (1.0 + x * x * 3.0 * GELU_A)


@triton.jit
def gelu_bend(x):
    """gelu''(x) = s (1 - s) (4 u' - 2 c + (1 - 2 s) x u'^2)."""
    slope = (1.0 + x * x * 3.0 * GELU_A) * GELU_C
    s = tl.sigmoid(x * GELU_C * (1.0 + x * x * GELU_A))
    return s * (1.0 - s) * (4.0 * slope - 2.0 * GELU_C + (1.0 - 2.0 * s) * x * slope * slope)


@triton.jit
def mean(x, D: tl.constexpr):
    """Over the head dimension: [rows, D] -> [rows, 1]."""
    return tl.expand_dims(tl.sum(x, 1), 1) / D


@triton.jit
def standardised(z, D: tl.constexpr):
    """h = (z - mean) r, and r = 1 / deviation [rows, 1]."""
    centred = z - mean(z, D)
    r = 1.0 / tl.sqrt(mean(centred * centred, D) + NORM_EPS)
    return centred * r, r


@triton.jit
def across(y, h, r, D: tl.constexpr):
    """(y - mean y - h mean(y h)) r: dz where y = dh."""
    return (y - mean(y, D) - h * mean(y * h, D)) * r


@triton.jit
def loss_gradient(z, target, gamma, beta, D: tl.constexpr):
    """G: the gradient of 1/2 |gamma h(z) + beta - target|^2 at z."""
    h, r = standardised(z, D)
    return across(gamma * (gamma * h + beta - target), h, r, D)


@triton.jit
def loss_gradient_backward(p, z, target, gamma, beta, D: tl.constexpr):
    """From p at G: the gradients at z and at the error gamma h + beta - target, and the rows to be summed for gamma."""
    h, r = standardised(z, D)
    error = gamma * h + beta - target
    u = gamma * error
    found = across(u, h, r, D)
    du = across(p, h, r, D)
    de = gamma * du
    dh = gamma * de - r * (p * mean(u * h, D) + u * mean(p * h, D))
    dz = across(dh, h, r, D) - h * r * mean(p * found, D)
    return dz, de, du * error + de * h
