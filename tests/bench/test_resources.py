"""Every Triton kernel compiles for every architecture at the presets' sizes, without a GPU.

Here in bfloat16, the precision of training; `python -m bench.resources` compiles them all.
"""

import pytest

pytest.importorskip("triton", reason="needs Triton")

from bench.resources import ARCHITECTURES, PRECISIONS, Row, cases, chosen, rows, triton_ops
from jetkern.ops import dispatch
from jetkern.ops.triton_tools import kernel_name

MADE_UP = Row("op", "kernel", "case", 80, 4, 128, 0, 0)


def test_precisions_are_those_of_the_ops() -> None:
    assert PRECISIONS == dispatch.PRECISIONS


def test_occupancy_follows_from_what_a_multiprocessor_has() -> None:
    assert MADE_UP.occupancy == 16 / 64  # 4 blocks of 4 warps hold 65,536 registers
    assert MADE_UP._replace(registers=32).occupancy == 1
    assert MADE_UP._replace(registers=24, warps=1).occupancy == 32 / 64  # 32 blocks
    assert MADE_UP._replace(shared=80 * 1024).occupancy == 8 / 64  # two of 81 KB in 164
    assert MADE_UP._replace(shared=80 * 1024, architecture=90).occupancy == 8 / 64
    assert MADE_UP._replace(shared=74 * 1024, architecture=90).occupancy == 12 / 64


def test_faults_are_spills_and_blocks_that_do_not_fit() -> None:
    assert MADE_UP.fault == ""
    assert MADE_UP._replace(spills=8).fault == "spills"
    assert MADE_UP._replace(shared=165 * 1024).fault == "does not fit"


@pytest.mark.slow
@pytest.mark.parametrize("op", triton_ops())
def test_kernels_compile_without_spills(op: str) -> None:
    made = list(rows([op], precisions=["bf16"], jobs=1))
    assert len(made) == len(chosen(op, ["bf16"])) * len(ARCHITECTURES)
    assert {r.kernel for r in made} == {kernel_name(case.kernel) for case in cases(op)}
    assert not [(r.kernel, r.label, r.architecture, r.fault) for r in made if r.fault]
