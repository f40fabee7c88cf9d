"""The rule that ops are held to finds what is wrong."""

import math

import pytest
import torch

from bench.accuracy import ROUNDED, fault

EXACT = [torch.tensor([1.0, -2.0, 4.0]), torch.tensor([0.1]), torch.tensor([3.0, -5.0])]
EAGER = [EXACT[0] + 1e-3, EXACT[1], EXACT[2]]


def moved(i: int, by: float) -> list[torch.Tensor]:
    """The exact numbers, the first of output ``i`` moved."""
    made = [t.clone() for t in EXACT]
    made[i][0] += by
    return made


def test_twice_eager_s_error_is_right_and_more_is_not() -> None:
    assert fault(EXACT, EAGER, moved(0, 1.9e-3)) == ""
    assert fault(EXACT, EAGER, moved(0, 2.1e-3)).startswith("output 0 (3,): error 0.0021 above")


def test_luck_of_eager_is_forgiven_to_a_fraction_of_the_largest_number() -> None:
    assert fault(EXACT, EAGER, moved(2, 4e-6)) == ""
    assert fault(EXACT, EAGER, moved(2, 6e-6)) != ""
    assert fault(EXACT, EAGER, moved(2, 6e-6), tiny=1e-5) == ""


def test_an_alpha_is_measured_by_the_gamma_behind_it() -> None:
    assert fault(EXACT, EAGER, moved(1, 7e-6)) == ""
    assert fault(EXACT, EAGER, moved(1, 1e-5)).startswith("output 1 (1,)")


@pytest.mark.parametrize("precision", ROUNDED)
def test_rounding_is_held_against_the_mean_square(precision: str) -> None:
    allowed = ROUNDED[precision] * math.sqrt(21)
    assert fault(EXACT, EXACT, moved(0, 0.99 * allowed), precision) == ""
    assert fault(EXACT, EXACT, moved(0, 1.01 * allowed), precision) != ""
    assert fault(EXACT, EXACT, moved(0, 1.9 * allowed), precision, chained=4) == ""


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_nan_another_shape_and_wrong_integers_are_wrong(precision: str) -> None:
    assert "error nan" in fault(EXACT, EAGER, moved(0, math.nan), precision)
    assert "has shape (2,)" in fault(EXACT, EAGER, [EXACT[0][:2], *EXACT[1:]], precision)
    rows = [torch.tensor([3, -1])]
    assert fault(rows, rows, rows, precision) == ""
    assert fault(rows, rows, [torch.tensor([3, 0])], precision) != ""
    assert fault([torch.empty(0)], [torch.empty(0)], [torch.empty(0)], precision) == ""
