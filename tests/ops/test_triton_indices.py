"""Random numbers and indices of packed rows in Triton's interpreter; on a GPU the same tests run on
it."""

import pytest
import torch

from jetkern.jets import join_segments, last_rows
from jetkern.packed import offsets_from_counts, rank_in_segment, segment_index
from jetkern.random import normal, random_bits, uniform

pytest.importorskip("triton", reason="needs Triton")

COUNTS = {
    "one": [3],
    "empty": [0],
    "empty ones": [0, 2, 0, 0, 5, 1, 0],
    "no segment": [],
    "many": [i % 4 for i in range(700)],
}


SEVERAL = (7, 9, 2**40)


@pytest.mark.parametrize(
    ("function", "stream"),
    [(random_bits, 7), (random_bits, SEVERAL), (uniform, 7), (uniform, SEVERAL), (normal, 7)],
)
def test_the_numbers_are_those_of_the_cpu(function, stream, launched):
    jet, rank = torch.randint(-(2**62), 2**62, (300,)), torch.arange(300)
    for counters in (
        (jet,),
        (jet[:0],),
        (jet, rank),
        (jet[:, None], rank[:, None], torch.arange(4)),
        (jet[::2], torch.tensor(5)),
    ):
        want = function(-3, stream, *counters)
        have = launched(function, -3, stream, *counters)
        assert have.dtype == want.dtype
        if function is normal:
            torch.testing.assert_close(have, want, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(have, want)


def test_other_counters_are_computed_plainly(launched):
    counters = (torch.arange(2)[:, None, None], torch.arange(3)[:, None], torch.arange(4))
    assert torch.equal(launched(uniform, 0, 1, *counters), uniform(0, 1, *counters))
    narrow = torch.arange(5, dtype=torch.int32)
    assert torch.equal(launched(uniform, 0, 1, narrow), uniform(0, 1, narrow))
    five = torch.arange(5)
    assert torch.equal(launched(random_bits, torch.tensor(4), 1, five), random_bits(4, 1, five))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_rows_know_their_segments(counts, launched):
    counts = torch.tensor(counts, dtype=torch.int64)
    own, total = offsets_from_counts(counts), int(counts.sum())
    wider = offsets_from_counts(counts + torch.arange(len(counts)) % 3)
    for function, arguments in (
        (segment_index, (own, total)),
        (rank_in_segment, (own, total)),
        (last_rows, (wider, own, total)),
    ):
        assert torch.equal(launched(function, *arguments), function(*arguments))


@pytest.mark.parametrize("sources", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_segments_are_joined(counts, sources, launched):
    counts = torch.tensor(counts, dtype=torch.int64)
    parts = []
    for number in range(sources):
        mine = (counts + number) % 4
        offsets = offsets_from_counts(mine)
        parts.append((torch.randn(int(mine.sum()), 2, requires_grad=True), offsets))
    want, offsets = join_segments(parts)
    have, same = launched(join_segments, parts)
    assert torch.equal(have, want)
    assert torch.equal(same, offsets)
    leaves = [rows for rows, _ in parts]
    slope = torch.randn_like(want)
    for a, b in zip(
        torch.autograd.grad(want, leaves, slope),
        torch.autograd.grad(have, leaves, slope),
        strict=True,
    ):
        assert torch.equal(a, b)
