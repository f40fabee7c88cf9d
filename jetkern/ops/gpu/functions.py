"""Device functions that the Triton kernels share: products, GELU, tanh, pair features."""

from __future__ import annotations

import triton
import triton.language as tl

from jetkern.ops.dispatch import interpreted

INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def _without_bits(x, BITS: tl.constexpr):
    """float32 rounded to nearest even without its last ``BITS`` bits."""
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    bits += (1 << (BITS - 1)) - 1 + ((bits >> BITS) & 1)
    return (bits & -(1 << BITS)).to(tl.float32, bitcast=True)


@triton.jit
def to_tf32(x):
    """float32 rounded to nearest TF32, ties away from zero; bfloat16 is TF32 already.

    Tensor cores do not round: they leave the last 13 bits out.
    """
    if x.dtype == tl.bfloat16:
        return x.to(tl.float32)
    elif INTERPRETED:
        bits = x.to(tl.float32).to(tl.int32, bitcast=True) + (1 << 12)
        return (bits & -(1 << 13)).to(tl.float32, bitcast=True)
    else:
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def _tf32_cores(a, b, acc):
    """a b + acc as TF32 tensor cores compute it, which the interpreter does not know."""
    if INTERPRETED:
        a = (a.to(tl.int32, bitcast=True) & -(1 << 13)).to(tl.float32, bitcast=True)
        b = (b.to(tl.int32, bitcast=True) & -(1 << 13)).to(tl.float32, bitcast=True)
    return tl.dot(a, b, acc, input_precision="tf32")


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """a b + acc with factors rounded to ``PRECISION``, sums in float32.

    "ieee" is three TF32 products on tensor cores, as exact as float32. The interpreter rounds to
    bfloat16 explicitly, for it multiplies bfloat16 by their bits.
    """
    if PRECISION == "bf16":
        if INTERPRETED:
            return tl.dot(_without_bits(a, 16), _without_bits(b, 16), acc)
        else:
            return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    elif PRECISION == "tf32":
        return _tf32_cores(to_tf32(a), to_tf32(b), acc)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="tf32x3")


@triton.jit
def reciprocal(x):
    """1 / x of float32 in one instruction (1 ulp); for |x| in [2^-126, 2^126]."""
    if INTERPRETED:
        return 1.0 / x
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def exp2(x):
    """2^x of float32 in one instruction (2 ulp); 0 below 2^-126."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def log2(x):
    """log2 x of float32 > 0 in a few instructions, absolute error 2^-22 between 1/2 and 2."""
    if INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise(
            "lg2.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def coarse_tanh(x):
    """tanh of float32 in one instruction, relative error 2^-11: enough for a factor in bfloat16."""
    if INTERPRETED:
        return tanh(x)
    else:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def tanh(x):
    """tanh of float32, relative error 2e-8 before rounding: x P(x^2) / Q(x^2), own minimax fit."""
    x = tl.minimum(tl.maximum(x, -9.01), 9.01)
    s = x * x
    p = s * 1.335494714e-8 + 2.060932974e-5
    p = p * s + 3.495605052e-3
    p = p * s + 1.338104057e-1
    p = p * s + 9.999999797e-1
    q = s * 7.776687256e-7 + 3.285661145e-4
    q = q * s + 2.587704864e-2
    q = q * s + 4.671435620e-1
    q = q * s + 1.0
    return x * p * reciprocal(q)


@triton.jit
def gelu(x, PRECISION: tl.constexpr = "ieee"):
    """The exact GELU of float32: x / 2 (1 + erf(x / sqrt 2)), own minimax fit of erf (2e-8).

    In "bf16" that of ``gelu_and_slope``, for a result that is rounded to bfloat16.
    """
    if PRECISION == "bf16":
        value, _ = gelu_and_slope(x, PRECISION)
        return value
    z = tl.minimum(tl.maximum(x, -5.586), 5.586)
    s = z * z
    p = s * 4.477647833e-8 + 1.258142714e-5
    p = p * s + 3.365124619e-4
    p = p * s + 9.346637582e-3
    p = p * s + 6.771447685e-2
    p = p * s + 7.978845445e-1
    q = s * 1.182383100e-6 + 7.315804065e-5
    q = q * s + 1.881645128e-3
    q = q * s + 2.863743022e-2
    q = q * s + 2.515338504e-1
    q = q * s + 1.0
    half = 0.5 * x
    return half * (z * p * reciprocal(q)) + half


@triton.jit
def gelu_and_slope(x, PRECISION: tl.constexpr = "ieee"):
    """The exact GELU and its derivative, sharing one exponential.

    Phi(-|x|) = exp(-x^2 / 2) R(1 / (1 + 0.3 |x|)), R of degree 7 (absolute error 5e-9).
    In "bf16" x / 2 (1 + tanh(x P(x^2))), own minimax fit (3e-5, its slope 1e-4), to which the
    hardware's tanh adds about an eighth of what rounding to bfloat16 does.
    """
    if PRECISION == "bf16":
        half = 0.5 * x
        s = tl.minimum(x * x, 60.0)
        u = (s * -3.52569388e-4 + 3.70121654e-2) * s + 7.97500681e-1
        d = (s * -1.76284694e-3 + 1.11036496e-1) * s + 7.97500681e-1
        t = coarse_tanh(x * u)
        return half * t + half, (half - half * t * t) * d + (0.5 * t + 0.5)
    t = reciprocal(tl.abs(x) * 0.3 + 1.0)
    e = exp2(x * x * -0.721347520)  # exp(-x^2 / 2)
    r = t * 3.885042051e-2 - 2.546664639e-1
    r = r * t + 5.505031605e-1
    r = r * t - 3.523918015e-1
    r = r * t + 3.369338898e-1
    r = r * t + 5.058053423e-2
    r = r * t + 1.309409147e-1
    r = r * t - 7.506593185e-4
    below = e * r
    phi = tl.where(x > 0, 1.0 - below, below)
    return x * phi, x * e * 0.398942280 + phi


@triton.jit
def log_or_zero(x):
    """ln x where x > 0, else 0, error 2^-22 of the result or of 1, whichever is larger."""
    return tl.where(x > 0, 0.693147181 * log2(tl.where(x > 0, x, 1.0)), 0.0)


@triton.jit
def pair_features(eta_i, phi_i, pt_i, eta_j, phi_j, pt_j):
    """(ln m^2, ln delta R, ln kT) of pairs from delta eta, delta phi and ln pT, in float32.

    See ``jetkern.ops.pair_features``; sinh through expm1 terms would cancel for close pairs, so
    that it is a polynomial there.
    """
    d_eta = eta_i - eta_j
    d_phi = phi_i - phi_j
    a = tl.abs(0.5 * d_eta)
    s = a * a
    p = s * 2.816955328e-6 + 1.983615914e-4  # relative error 5e-11 on |x| <= 1
    p = p * s + 8.333350061e-3
    p = p * s + 1.666666650e-1
    e = tl.exp(tl.minimum(a, 88.0))
    sinh = tl.where(a > 1.0, 0.5 * e - 0.5 * reciprocal(e), p * s * a + a)
    n = tl.floor(0.5 * d_phi * 0.318309886 + 0.5)
    r = 0.5 * d_phi - n * 3.140625  # pi in three parts
    r = r - n * 9.67025757e-4
    r = r - n * 6.27832957e-7
    s = r * r
    p = s * -2.388882945e-8 + 2.752538016e-6  # relative error 2e-11 on |r| <= pi / 2
    p = p * s - 1.984086813e-4
    p = p * s + 8.333331108e-3
    p = p * s - 1.666666663e-1
    sine = p * s * r + r
    angle = 2 * sinh * sinh + 2 * sine * sine
    distance = d_eta * d_eta + d_phi * d_phi
    ln_r = 0.5 * log_or_zero(distance)
    ln_m2 = tl.where(angle > 0, 0.693147181 + pt_i + pt_j + log_or_zero(angle), 0.0)
    ln_kt = tl.where(distance > 0, tl.minimum(pt_i, pt_j) + ln_r, 0.0)
    return ln_m2, ln_r, ln_kt
