"""Every launch of the presets compiles for every architecture, without a GPU.

Here in bfloat16, the precision of training; `python -m bench.resources` compiles them all.
"""

import pytest

pytest.importorskip("triton", reason="needs Triton")

from bench.resources import (
    ARCHITECTURES,
    ARRAYS,
    NAMED,
    PRECISIONS,
    Call,
    Launch,
    Row,
    Use,
    issued_by,
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
    call, last = Call((10,), (("out", 8), 160_000)), Call((5,), (("out", 8), 80_000))
    found = labelled(
        {
            ("micro", "ieee", False): [("kNN", one, call), ("kNN", one, last)],
            ("small", "ieee", False): [("kNN", one, last), ("kNN", other, last)],
        }
    )
    first = Use("micro", "ieee", "", "kNN", (call, last), 160_000)
    assert found == [
        (one, "micro, small; ieee; kNN", first),
        (other, "small; ieee; kNN", Use("small", "ieee", "", "kNN", (last,), 80_000)),
    ]
    assert (one.op, one.name) == ("knn", "knn")


LOOP = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   S2R R0, SR_CTAID.X ;
        /*0020*/                   IMAD.MOV.U32 R2, RZ, RZ, RZ ;
        /*0030*/                   LDG.E R5, [R6.64] ;
        /*0040*/                   ISETP.GT.AND P0, PT, R5, 0x3, PT ;
        /*0050*/                   P2R R4, PR, RZ, 0x1 ;
.L_x_0:
        /*0060*/               @P0 BRA `(.L_x_1) ;
        /*0070*/                   FADD R8, R8, R5 ;
.L_x_1:
        /*0080*/              @!P0 FADD R8, R8, 1 ;
        /*0090*/                   IADD3 R2, R2, 0x4, RZ ;
        /*00a0*/                   ISETP.GE.AND P1, PT, R2, c[0x0][0x160], PT ;
        /*00b0*/                   P2R R4, PR, R4, 0x2 ;
        /*00c0*/                   LOP3.LUT P2, RZ, R4, 0x2, RZ, 0xc0, !PT ;
        /*00d0*/              @!P2 BRA `(.L_x_0) ;
        /*00e0*/                   ISETP.GT.AND P3, PT, R0, 0x7, PT ;
        /*00f0*/               @P3 EXIT ;
        /*0100*/                   STG.E [R6.64], R8 ;
        /*0110*/                   EXIT ;
.L_x_2:
        /*0120*/                   BRA `(.L_x_2) ;
        /*0130*/                   NOP ;
"""


def use(grid: int, trips: int) -> Use:
    return Use("micro", "bf16", "", "norm", (Call((grid,), (4 * trips,)),), 10)


@pytest.mark.parametrize("trips", [1, 5])
def test_issued_instructions_follow_the_loops(trips: int) -> None:
    """Six before the loop, eight a trip with what an unknown branch would skip, then the end."""
    program = 6 + 8 * trips
    assert issued_by(LOOP, 80, 2, use(10, trips)) == (program + 4) * 2 * 10 / 10
    assert issued_by(LOOP, 80, 2, use(20, trips)) == (program + 2) * 2 * 20 / 10


def test_a_loop_may_end_in_a_call_that_does_not_return() -> None:
    code = LOOP.replace(
        "@!P2 BRA `(.L_x_0) ;",
        "@P2 CALL.REL.NOINC `(.L_x_3) ;\n        /*00d8*/ BRA `(.L_x_0) ;\n.L_x_3:",
    )
    assert issued_by(code, 80, 1, use(1, 5)) == (6 + 9 * 5 - 1 + 4) / 10


def test_a_loop_over_data_is_not_counted() -> None:
    assert issued_by(LOOP.replace("@!P2 BRA", "@!P0 BRA"), 80, 2, use(10, 1)) is None


def test_a_minimum_of_a_sum_is_followed() -> None:
    """Trips are min(a + b, c), as where a program's last rows are fewer."""
    code = LOOP.replace("IMAD.MOV.U32 R2, RZ, RZ, RZ", "VIADDMNMX R2, R0, -0x8, RZ, PT")
    assert issued_by(code, 80, 1, use(2, 1)) == (6 + 8 * 3 + 4) * 2 / 10  # from 1 - 8 to 4


def test_a_pointer_to_known_integers_is_followed() -> None:
    code = """
        /*0000*/                   IMAD.MOV.U32 R2, RZ, RZ, c[0x0][0x160] ;
        /*0010*/                   IMAD.MOV.U32 R3, RZ, RZ, c[0x0][0x164] ;
        /*0020*/                   LDG.E.64 R4, [R2.64+0x8] ;
.L_x_0:
        /*0030*/                   IADD3 R4, R4, -0x1, RZ ;
        /*0040*/                   ISETP.NE.AND P0, PT, R4, RZ, PT ;
        /*0050*/               @P0 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
"""
    made = use(1, 1)._replace(calls=(Call((1,), (("offsets", 8),)),), particles=1)
    assert issued_by(code, 80, 1, made) == 3 + 3 * ARRAYS["offsets"](1) + 1


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_launches_compile_without_spills(size: str) -> None:
    made = list(rows(precisions=["bf16"], sizes=[size], jobs=1))
    assert {r.architecture for r in made} == set(ARCHITECTURES)
    used = {r.kernel for r in made}
    assert {"knn", "pair_bias_fwd", "pair_bias_bwd_weights", "attention_bwd"} <= used
    assert {"clip", "lion", "adam_factors", "adam"} <= used
    assert ("local_block_fwd" in used) == (size in ("micro", "small"))
    assert not [r for r in made if r.fault]
    counted = {r.kernel for r in made if r.issued}
    assert {name for name in used if name.startswith(("local", "knn", "mlp", "dynamic"))} <= counted
