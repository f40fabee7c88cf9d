"""How accurate an op has to be: the rule that benchmarks and tests hold it to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

ROUNDED = {"tf32": 2e-3, "bf16": 1e-2}  # root mean square error allowed, relative


def fault(
    exact: Sequence[Tensor],
    eager: Sequence[Tensor],
    ours: Sequence[Tensor],
    precision: str = "ieee",
    *,
    tiny: float = 1e-6,
    chained: int = 1,
) -> str:
    """What is wrong with a result and its gradients, "" if nothing.

    In "ieee" no number may err more than twice as much as the worst one of eager float32 and, as
    that may round luckily, ``tiny`` of the largest number. At the precisions "tf32" and "bf16" the
    root mean square of the error is held against ``ROUNDED``, for a chain of ``chained`` ops added
    in quadrature. A NaN is wrong.

    The gradient of a norm's alpha is a sum over features that largely cancels, so that it has no
    accuracy of its own: its scale is that of the gamma's gradient, which follows it.

    Args:
        exact, eager, ours: result, then gradients in one order: of the reference in float64 and in
            float32, and what is judged.
    """
    for i, (want, plain, have) in enumerate(zip(exact, eager, ours, strict=True)):
        name = f"output {i} {tuple(want.shape)}"
        if have.shape != want.shape:
            return f"{name}: has shape {tuple(have.shape)}"
        if not want.numel():
            continue
        is_alpha = want.shape == (1,) and 0 < i < len(exact) - 1 and exact[i + 1].ndim == 1
        if precision in ROUNDED and want.is_floating_point():
            error = (have - want).square().mean().sqrt().item()
            scale = exact[i + 1].abs().sum() if is_alpha else want.square().mean().sqrt()
            allowed = chained**0.5 * ROUNDED[precision] * scale.item()
        else:
            error, twice = ((x - want).abs().max().item() for x in (have, plain))
            scale = exact[i + 1].abs().sum() if is_alpha else want.abs().max()
            allowed = 2 * twice + tiny * scale.item()
        if not error <= allowed:
            return f"{name}: error {error:.2g} above {allowed:.2g}, of {scale.item():.2g}"
    return ""
