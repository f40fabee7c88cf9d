"""Losses of a batch on GPUs, a launch forward and one back: squared errors of the velocity, and
cross-entropies of jets."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from jetkern.ops.gpu.launch import cdiv, launch, power_of_two
from jetkern.ops.gpu.register import gpu_operator

BLOCK = 256
SETTINGS = {"BLOCK": BLOCK, "num_warps": 4}
JETS = 32  # of a program
MOST_CLASSES = 1024


@triton.jit
def _share(owner, offsets, row, real, inside):
    """One over the particles of a row's jet, 0 of a filler jet."""
    jet = tl.load(owner + row, inside, 0)
    count = tl.load(offsets + jet + 1, inside, 1) - tl.load(offsets + jet, inside, 0)
    share = 1.0 / tl.maximum(count, 1).to(tl.float32)
    return tl.where(jet < real, share, 0.0)


@triton.jit(do_not_specialize=["total", "real"])
def flow_errors_kernel(
    sums, output, target, widths, owner, offsets, columns, total, real, BLOCK: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    error = tl.load(output + place, inside, 0.0) - tl.load(target + place, inside, 0.0)
    if widths is not None:
        error /= tl.load(widths + place % columns)
    share = _share(owner, offsets, place // columns, real, inside)
    tl.store(sums + tl.program_id(0), tl.sum(error * error * share, 0))


@triton.jit(do_not_specialize=["total", "real"])
def flow_errors_bwd_kernel(
    d_output, d_sums, output, target, widths, owner, offsets, columns, total, real,
    BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    error = tl.load(output + place, inside, 0.0) - tl.load(target + place, inside, 0.0)
    if widths is not None:
        width = tl.load(widths + place % columns)
        error /= width * width
    share = _share(owner, offsets, place // columns, real, inside)
    tl.store(d_output + place, 2.0 * error * share * tl.load(d_sums + tl.program_id(0)), inside)


@triton.jit
def _probabilities(output, label, time, jet, column, classes, jets):
    """Of the classes of some jets; how much their errors weigh; and ln of their label's."""
    inside = jet < jets
    mask = inside[:, None] & (column < classes)[None, :]
    at = jet[:, None] * classes + column[None, :]
    logits = tl.load(output + at, mask, float("-inf"))
    logits = tl.where(inside[:, None], logits, 0.0)
    top = tl.max(logits, 1)
    terms = tl.exp(logits - top[:, None])
    total = tl.sum(terms, 1)
    number = tl.load(label + jet, inside, -100)
    own = (column[None, :] == number[:, None]) & mask
    known = (number >= 0) & (number < classes)
    ln_own = tl.sum(tl.where(own, logits, 0.0), 1) - top - tl.log(total)
    weight = tl.where(number == -100, 0.0, tl.where(known, 1.0, float("nan")))
    if time is not None:
        left = 1.0 - tl.load(time + jet, inside, 0.0)
        weight *= left * left
    return terms / total[:, None], own, weight, ln_own, at, mask


@triton.jit(do_not_specialize=["jets"])
def class_errors_kernel(
    sums, output, label, time, classes, jets, CLASSES: tl.constexpr, JETS: tl.constexpr
):
    jet = tl.program_id(0).to(tl.int64) * JETS + tl.arange(0, JETS)
    column = tl.arange(0, CLASSES)
    _, _, weight, ln_own, _, _ = _probabilities(output, label, time, jet, column, classes, jets)
    error = tl.where(weight == 0.0, 0.0, -weight * ln_own)
    tl.store(sums + tl.program_id(0), tl.sum(error, 0))


@triton.jit(do_not_specialize=["jets"])
def class_errors_bwd_kernel(
    d_output, d_sums, output, label, time, classes, jets,
    CLASSES: tl.constexpr, JETS: tl.constexpr,
):  # fmt: skip
    jet = tl.program_id(0).to(tl.int64) * JETS + tl.arange(0, JETS)
    column = tl.arange(0, CLASSES)
    share, own, weight, _, at, mask = _probabilities(
        output, label, time, jet, column, classes, jets
    )
    apart = share - own.to(tl.float32)
    d = tl.where(weight[:, None] == 0.0, 0.0, weight[:, None] * apart)
    tl.store(d_output + at, d * tl.load(d_sums + tl.program_id(0)), mask)


def _launch_errors(
    kernel: Any,
    programs: int,
    output: Tensor,
    target: Tensor,
    widths: Tensor | None,
    owner: Tensor,
    offsets: Tensor,
    real: int,
    **made: Tensor,
) -> None:
    launch(
        kernel,
        (programs,),
        output.device,
        SETTINGS,
        output=output,
        target=target,
        widths=widths,
        owner=owner,
        offsets=offsets,
        columns=output.shape[1],
        total=output.numel(),
        real=real,
        **made,
    )


def _errors(output: Tensor, *others: Any) -> Tensor:
    sums = output.new_empty(cdiv(output.numel(), BLOCK))
    _launch_errors(flow_errors_kernel, len(sums), output, *others, sums=sums)
    return sums


def _errors_backward(d_sums: Tensor, output: Tensor, *others: Any) -> Tensor:
    d_output = torch.empty_like(output)
    _launch_errors(
        flow_errors_bwd_kernel,
        len(d_sums),
        output,
        *others,
        d_sums=d_sums.contiguous(),
        d_output=d_output,
    )
    return d_output


def _errors_reference(
    output: Tensor,
    target: Tensor,
    widths: Tensor | None,
    owner: Tensor,
    offsets: Tensor,
    real: int,
) -> Tensor:
    error = output - target if widths is None else (output - target) / widths
    share = 1 / offsets.diff().clamp(min=1).to(error.dtype)
    share = share * (torch.arange(len(share), device=share.device) < real)
    each = (error.square() * share[owner][:, None]).flatten()
    return pad(each, (0, -len(each) % BLOCK)).view(-1, BLOCK).sum(1)


_errors_op = gpu_operator(
    "flow_errors",
    "(Tensor output, Tensor target, Tensor? widths, Tensor owner, Tensor offsets, SymInt real)"
    " -> Tensor",
    fake=lambda output, *_: output.new_empty(-(-output.numel() // BLOCK)),
    forward=_errors,
    backward=_errors_backward,
    gradients="output",
    reference=_errors_reference,
)


def flow_errors(
    output: Tensor,
    target: Tensor,
    widths: Tensor | None,
    owner: Tensor,
    offsets: Tensor,
    real: int,
) -> Tensor:
    """() sum over jets of the mean over particles of the squared error, summed over features.

    Args:
        output, target: (T, F) float32; widths: (F,) units of the errors, or None.
        owner: (T,) int64 jet of each row; offsets: (B + 1,) int64.
        real: jets from this one on are fillers.
    """
    sums: Tensor = _errors_op(
        output.contiguous(), target.contiguous(), widths, owner, offsets, real
    )
    return sums.sum()


def _launch_classes(
    kernel: Any,
    programs: int,
    output: Tensor,
    label: Tensor,
    time: Tensor | None,
    **made: Tensor,
) -> None:
    jets, classes = output.shape
    launch(
        kernel,
        (programs,),
        output.device,
        {"num_warps": 4},
        output=output,
        label=label,
        time=time,
        classes=classes,
        jets=jets,
        CLASSES=power_of_two(classes),
        JETS=JETS,
        **made,
    )


def _classes(output: Tensor, label: Tensor, time: Tensor | None) -> Tensor:
    sums = output.new_empty(cdiv(len(output), JETS))
    _launch_classes(class_errors_kernel, len(sums), output, label, time, sums=sums)
    return sums


def _classes_backward(d_sums: Tensor, output: Tensor, label: Tensor, time: Tensor | None) -> Tensor:
    d_output, d_sums = torch.empty_like(output), d_sums.contiguous()
    _launch_classes(
        class_errors_bwd_kernel, len(d_sums), output, label, time, d_sums=d_sums, d_output=d_output
    )
    return d_output


def _classes_reference(output: Tensor, label: Tensor, time: Tensor | None) -> Tensor:
    each = cross_entropy(output, label, reduction="none")  # fillers are -100
    each = each if time is None else (1 - time).square() * each
    return pad(each, (0, -len(each) % JETS)).view(-1, JETS).sum(1)


_classes_op = gpu_operator(
    "class_errors",
    "(Tensor output, Tensor label, Tensor? time) -> Tensor",
    fake=lambda output, *_: output.new_empty(-(-output.shape[0] // JETS)),
    forward=_classes,
    backward=_classes_backward,
    gradients="output",
    reference=_classes_reference,
)


def class_errors(output: Tensor, label: Tensor, time: Tensor | None = None) -> Tensor:
    """() sum of the cross-entropies of jets, those of perturbed ones times (1 - t)^2.

    Args:
        output: (B, C) logits; other than float32, or of more than 1,024 classes, PyTorch's calls
            take them.
        label: (B,) int64; -100 leaves a jet out, another number that is no class gives NaN.
        time: (B,) float32 of each jet, or None.
    """
    if output.dtype != torch.float32 or output.shape[1] > MOST_CLASSES:
        return _classes_reference(output, label, time).sum()
    time = None if time is None else time.contiguous()
    sums: Tensor = _classes_op(output.contiguous(), label.contiguous(), time)
    return sums.sum()
