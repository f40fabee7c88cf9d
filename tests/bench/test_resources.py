"""Every launch of the presets compiles for every architecture, without a GPU.

Here in bfloat16, the precision of training; `python -m bench.resources` compiles them all.
"""

import pytest

pytest.importorskip("triton", reason="needs Triton")

from bench.resources import (
    ARCHITECTURES,
    NAMED,
    PRECISIONS,
    Launch,
    Row,
    labelled,
    rows,
)
from jetkern.model.presets import SIZES
from jetkern.ops import dispatch
from jetkern.ops.gpu.launch import FAMILIES

MADE_UP = Row("op", "kernel", "case", 80, 4, 128, 0, 0)


def test_precisions_and_architectures_are_those_of_the_ops() -> None:
    assert PRECISIONS == dispatch.PRECISIONS
    assert tuple(FAMILIES) == ARCHITECTURES


def test_occupancy_follows_from_what_a_multiprocessor_has() -> None:
    assert MADE_UP.occupancy == 16 / 64  # 4 blocks of 4 warps hold 65,536 registers
    assert MADE_UP._replace(registers=32).occupancy == 1
    assert MADE_UP._replace(registers=24, warps=1).occupancy == 32 / 64  # 32 blocks
    assert MADE_UP._replace(shared=80 * 1024).occupancy == 8 / 64  # two of 81 KB in 164
    assert MADE_UP._replace(shared=80 * 1024, architecture=90).occupancy == 8 / 64
    assert MADE_UP._replace(shared=74 * 1024, architecture=90).occupancy == 12 / 64


def test_faults_are_spills_and_blocks_that_do_not_fit() -> None:
    assert MADE_UP.fault == ""
    assert MADE_UP._replace(spills=8, registers=255).fault == "spills"
    assert MADE_UP._replace(spills=8, registers=168).fault == ""  # for one more block
    (kernel, label), spills = next(iter(NAMED.items()))
    named = MADE_UP._replace(kernel=kernel, label=label, registers=255)
    assert named._replace(spills=spills).fault == ""
    assert named._replace(spills=spills + 4).fault == "spills"
    assert MADE_UP._replace(shared=165 * 1024).fault == "does not fit"
    assert MADE_UP._replace(shared=100 * 1024).fault == "does not fit"  # sm_86 offers 99
    assert MADE_UP._replace(shared=100 * 1024, architecture=90).fault == ""


def test_a_launch_is_compiled_once_with_all_its_uses() -> None:
    one = Launch("jetkern.ops.knn.triton:knn_kernel", 80, {"out": "*i64"}, {}, {}, {"num_warps": 4})
    other = one._replace(options={"num_warps": 8})
    found = labelled(
        {
            ("micro", "ieee", False): [("kNN", one), ("kNN", one)],
            ("small", "ieee", False): [("kNN", one), ("kNN", other)],
        }
    )
    assert found == [(one, "micro, small; ieee; kNN"), (other, "small; ieee; kNN")]
    assert (one.op, one.name) == ("knn", "knn")


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_launches_compile_without_spills(size: str) -> None:
    made = list(rows(precisions=["bf16"], sizes=[size], jobs=1))
    assert {r.architecture for r in made} == set(ARCHITECTURES)
    used = {r.kernel for r in made}
    assert {"knn", "pair_bias_fwd", "pair_bias_bwd_weights", "attention_bwd"} <= used
    assert ("local_block_fwd" in used) == (size in ("micro", "small"))
    assert not [r for r in made if r.fault]
