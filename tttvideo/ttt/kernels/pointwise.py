"""What happens between the matrix products, and the products themselves: device functions shared by all kernels.

Tiles hold tokens as rows. Everything is computed in the dtype of its arguments: float32, or float64 where tests ask
for it. Formulas are those of ``derivatives.py`` and ``objective.py``; README.md derives them.
"""

import triton
import triton.language as tl

from ..derivatives import EPS, A, C

# constexpr stands right of a tensor: left of it, the interpreter makes the product a constexpr, too
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # pyright: ignore[reportAttributeAccessIssue]
GELU_A = tl.constexpr(A)
GELU_C = tl.constexpr(C)
NORM_EPS = tl.constexpr(EPS)


@triton.jit
def to_tf32(x):
    """x rounded to the nearest TensorFloat-32 number, which has 11 bits. Tensor cores cut the other 13 off by
    themselves: operands that are not rounded would all err towards zero."""
    if INTERPRETED:
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        rounded = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # what is added can make a NaN a zero
    else:
        rounded = tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], tl.float32, is_pure=True, pack=1)
    return rounded


@triton.jit
def to_bf16(x):
    """x rounded to the nearest bfloat16 number, which has 8 bits; in the interpreter, whose own conversion cuts and
    whose products read bfloat16 as integers, a float32 of that value."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        rounded = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    else:
        rounded = x.to(tl.bfloat16)
    return rounded


@triton.jit
def store(at, values, inside):
    """Rounded to nearest in what stands ``at``: the interpreter's own conversion to bfloat16 cuts."""
    if INTERPRETED and at.dtype.element_ty == tl.bfloat16:
        values = to_bf16(values)
    tl.store(at, values, mask=inside)


@triton.jit
def mm(a, b, MODE: tl.constexpr):
    """a @ b, accumulated in the dtype of ``a``.

    ``MODE`` says what the tensor cores read: "bf16" operands rounded to bfloat16, "tf32" to TensorFloat-32, "tf32x3"
    each as the sum of two of TensorFloat-32, "ieee" as they are. The interpreter multiplies float32 whatever it is
    told; it gets operands that were rounded alike.
    """
    if MODE == "bf16":
        product = tl.dot(to_bf16(a), to_bf16(b), out_dtype=tl.float32)
    elif MODE == "tf32":
        product = tl.dot(to_tf32(a), to_tf32(b), input_precision="tf32", out_dtype=tl.float32)
    elif MODE == "tf32x3" and INTERPRETED:  # as Triton compiles it
        large_a, large_b = to_tf32(a), to_tf32(b)
        product = tl.dot(to_tf32(a - large_a), large_b) + tl.dot(large_a, to_tf32(b - large_b))
        product += tl.dot(large_a, large_b)
    else:
        product = tl.dot(a, b, input_precision=MODE, out_dtype=a.dtype)
    return product


@triton.jit
def gate(x, MODE: tl.constexpr):
    """s = sigmoid(u), with which gelu(x) = x s. Where products read 11 bits or fewer it comes from the device's own
    tanh, one instruction: 11 bits of tanh (PTX: a relative error of 2^-11), to which the interpreter rounds."""
    u = x * GELU_C * (1.0 + x * x * GELU_A)
    if MODE == "bf16" or MODE == "tf32":
        if INTERPRETED:
            tanh = to_tf32(2.0 * tl.sigmoid(u) - 1.0)
        else:
            tanh = tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=r,r", [0.5 * u], tl.float32, is_pure=True, pack=1
            )
        s = 0.5 + 0.5 * tanh
    else:
        s = tl.sigmoid(u)
    return s


@triton.jit
def gelu(x, MODE: tl.constexpr):
    return x * gate(x, MODE)


@triton.jit
def gelu_slope(x, MODE: tl.constexpr):
    """gelu'(x) = s + s (1 - s) x u'."""
    s = gate(x, MODE)
    return s + s * (1.0 - s) * x * GELU_C * (1.0 + x * x * 3.0 * GELU_A)


@triton.jit
def gelu_bend(x, MODE: tl.constexpr):
    """gelu''(x) = s (1 - s) (4 u' - 2 c + (1 - 2 s) x u'^2)."""
    slope = (1.0 + x * x * 3.0 * GELU_A) * GELU_C
    s = gate(x, MODE)
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
    gradient = across(u, h, r, D)
    du = across(p, h, r, D)
    de = gamma * du
    dh = gamma * de - r * (p * mean(u * h, D) + u * mean(p * h, D))
    dz = across(dh, h, r, D) - h * r * mean(p * gradient, D)
    return dz, de, du * error + de * h
