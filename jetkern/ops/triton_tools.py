"""What the Triton kernels share: elementary functions, products, launch settings, registration.

Kernels of an op are in ``jetkern/ops/<op>/triton.py``. Each such module registers its operators in
``torch.ops.jetkern_triton``, asks ``launch_settings`` how to launch, and lists in ``CANDIDATES``
what ``python -m bench.tune`` may try, and in ``compile_cases`` what ``python -m bench.resources``
compiles. With TRITON_INTERPRET=1 in the environment, set before Triton is imported, the kernels run
on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from jetkern.ops.dispatch import interpreted

Launcher = TypeVar("Launcher", bound=Callable[..., Any])
Settings = dict[str, int]

TABLES = Path(__file__).parent / "launch"
FAMILIES = (80, 90)


class CompileCase(NamedTuple):
    """One compilation of a kernel, as a preset uses it.

    Attributes:
        kernel: the jit function. label: what it stands for, such as "small bf16".
        arguments: every parameter by name, in order: a Triton type ("*fp32", "i32", ...) for what
            is passed at run time, a Python value for a constexpr.
        settings: num_warps, num_stages and other options of the compiler.
        row: kernel and key of ``launch_settings`` that it is launched with.
    """

    kernel: Any
    label: str
    arguments: dict[str, Any]
    settings: Settings
    row: tuple[str, str]


def family(device: torch.device) -> int:
    """The newest of ``FAMILIES`` that the GPU is not older than; the oldest in the interpreter."""
    if device.type != "cuda":
        return FAMILIES[0]
    major, minor = torch.cuda.get_device_capability(device)
    return max((f for f in FAMILIES if f <= 10 * major + minor), default=FAMILIES[0])


@functools.cache
def _table(architecture: int) -> dict[str, dict[str, Settings]]:
    path = TABLES / f"sm{architecture}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


_forced: dict[tuple[str, str], Settings] = {}
_asked: set[tuple[str, str]] = set()
_tables_count = True


def launch_settings(kernel: str, key: str, device: torch.device, default: Settings) -> Settings:
    """How to launch ``kernel``: the shipped table's row for this GPU family, else ``default``.

    Args:
        kernel: name of the kernel's row in ``jetkern/ops/launch/sm<NN>.json``.
        key: what the best choice depends on, such as "d16 n64 bf16"; never a batch size.
    """
    _asked.add((kernel, key))
    table = _table(family(device)) if _tables_count else {}
    chosen = _forced.get((kernel, key)) or table.get(kernel, {}).get(key, {})
    return {**default, **chosen}


def kernel_name(kernel: Any) -> str:
    """Of a jit function, as launch settings and tables of results have it."""
    return str(kernel.fn.__name__).removesuffix("_kernel")


def shipped(case: CompileCase, architecture: int) -> CompileCase:
    """The case as the shipped table of a GPU family has it."""
    kernel, key = case.row
    chosen = _table(architecture).get(kernel, {}).get(key, {})
    arguments = {name: chosen.get(name, value) for name, value in case.arguments.items()}
    return case._replace(arguments=arguments, settings={**case.settings, **chosen})


@contextmanager
def default_settings() -> Iterator[None]:
    """Launches with the defaults, whatever the table says. For the tuner."""
    global _tables_count
    before, _tables_count = _tables_count, False
    try:
        yield
    finally:
        _tables_count = before


@contextmanager
def forced_settings(kernel: str, key: str, settings: Settings) -> Iterator[None]:
    """Launches with ``settings``, whatever the table says. For the tuner."""
    _forced[kernel, key] = settings
    try:
        yield
    finally:
        del _forced[kernel, key]


@contextmanager
def settings_asked() -> Iterator[set[tuple[str, str]]]:
    """The (kernel, key) pairs that launches within the block ask for."""
    _asked.clear()
    yield _asked


def define(name: str, schema: str) -> Callable[[Launcher], Launcher]:
    """Registers the decorated launcher as ``torch.ops.jetkern_triton.<name>``."""
    torch.library.define(f"jetkern_triton::{name}", schema)

    def register(launch: Launcher) -> Launcher:
        for device in ("cuda", "cpu") if interpreted() else ("cuda",):
            torch.library.impl(f"jetkern_triton::{name}", device, launch)
        return launch

    return register


def on_device(tensor: Tensor) -> Any:
    """Context in which kernels are launched on the tensor's GPU, be it the current one or not."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}


INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def _without_bits(x, BITS: tl.constexpr):
    """float32 rounded to nearest even without its last ``BITS`` bits."""
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    bits += (1 << (BITS - 1)) - 1 + ((bits >> BITS) & 1)
    return (bits & -(1 << BITS)).to(tl.float32, bitcast=True)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """a b + acc with factors rounded to ``PRECISION``, sums in float32.

    "ieee" is three TF32 products on tensor cores, as exact as float32. The interpreter rounds
    explicitly: it multiplies bfloat16 by their bits and ignores TF32.
    """
    if INTERPRETED:
        if PRECISION == "ieee":
            return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
        BITS: tl.constexpr = 16 if PRECISION == "bf16" else 13
        return tl.dot(_without_bits(a, BITS), _without_bits(b, BITS), acc)
    elif PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), acc)
    elif PRECISION == "tf32":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="tf32")
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
    """ln x where x > 0, else 0."""
    return tl.where(x > 0, tl.log(tl.where(x > 0, x, 1.0)), 0.0)


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
