"""Rising functions of rational-quadratic pieces, as couplings of normalising flows use them."""

from __future__ import annotations

from torch import Tensor

from jetkern.ops.checks import check_float, check_shape
from jetkern.ops.dispatch import run


def spline(
    x: Tensor,
    raw: Tensor,
    *,
    tail: float = 4.0,
    least: float = 1e-3,
    inverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A rising function of each value, and the log of its slope.

    A rational-quadratic spline (Durkan et al., arXiv:1906.04032, section 3.1): K bins between
    -tail and tail, the identity beyond.

    Args:
        x: (...) float.
        raw: (..., 3 K - 1) widths and heights of the bins and the slopes at the knots between them,
            before they are made positive by softmax and softplus. Zeros give the identity.
        tail: where the function becomes the identity.
        least: share of -tail to tail that each bin has at least, and slope that each knot has.
        inverse: the inverse function, and the log of its slope.

    Returns:
        (...) and (...).

    Raises:
        ValueError: for wrong shapes or dtypes, a ``tail`` not above 0, or a ``least`` not in
            (0, 1 / K).
    """
    check_float("x", x)
    check_float("raw", raw)
    bins = (raw.shape[-1] + 1) // 3 if raw.ndim else 0
    if bins < 1 or raw.shape[-1] != 3 * bins - 1:
        raise ValueError(f"raw must be (..., 3 K - 1) of K bins, got {tuple(raw.shape)}")
    check_shape("raw", raw, *x.shape, raw.shape[-1])
    if not tail > 0:
        raise ValueError(f"tail must be above 0, got {tail}")
    if not 0 < least * bins < 1:
        raise ValueError(f"least must lie in (0, 1 / {bins}), got {least}")
    flat = x.reshape(-1), raw.reshape(-1, raw.shape[-1])
    out: Tensor = run("spline", backend, *flat, float(tail), float(least), inverse)
    moved, log_slope = out.unbind(1)
    return moved.view(x.shape), log_slope.view(x.shape)
