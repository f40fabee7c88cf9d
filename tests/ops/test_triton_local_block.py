"""The Triton kernels in Triton's interpreter; on a GPU the same tests run on it."""

import numpy as np
import pytest
from torch import Tensor

from jetkern.ops import local_block
from tests.ops.helpers import check_accuracy, convert, triton_device
from tests.ops.test_local_block import inputs

pytest.importorskip("triton", reason="needs Triton")


@pytest.fixture(autouse=True)
def _round_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 as a GPU makes it: Triton's interpreter cuts the last bits off instead."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert_float = interpreter._convert_float

    def rounded(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert_float(values, source, target, mode)
        bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


def run(particles, neighbours, embed, blocks, heads, backend="auto", precision="ieee") -> Tensor:
    """On the device that ``backend`` needs, the result on the CPU."""
    device = triton_device() if backend == "triton" else "cpu"
    tensors = convert((particles, embed, list(blocks)), lambda t: t.to(device))
    particles, embed, blocks = tensors
    out = local_block(
        particles,
        neighbours.to(device),
        embed,
        blocks,
        int(heads),
        backend=backend,
        precision=precision,
    )
    return out.cpu()


@pytest.mark.parametrize("counts", [[], [0, 0], [1], [0, 1, 2, 5, 0, 6, 9], [7, 0]], ids=str)
def test_accuracy(counts: list[int]) -> None:
    check_accuracy(run, *inputs(counts, 32, 32, 5), 4, fixed=(0,), backend="triton")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_accuracy_at_a_precision(precision: str) -> None:
    values = inputs([2, 12, 1, 9], 32, 32, 5)
    check_accuracy(run, *values, 4, fixed=(0,), backend="triton", precision=precision)


def test_accuracy_of_the_widest() -> None:
    check_accuracy(run, *inputs([12, 3], 128, 64, 10, 1), 8, fixed=(0,), backend="triton")


@pytest.mark.parametrize("counts", [[], [0, 0], [1], [0, 1, 2, 5, 0, 6, 9], [7, 0]], ids=str)
def test_accuracy_of_any_width(counts: list[int]) -> None:
    check_accuracy(run, *inputs(counts, 24, 40, 5), 3, fixed=(0,), backend="triton")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_accuracy_of_any_width_at_a_precision(precision: str) -> None:
    values = inputs([2, 12, 1, 9], 40, 72, 15)
    check_accuracy(run, *values, 2, fixed=(0,), backend="triton", precision=precision)
