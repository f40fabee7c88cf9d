import pytest
import torch
from torch import Tensor

from jetkern.ops import causal_attention, decode_attention
from jetkern.packed import offsets_from_counts
from tests.ops.helpers import generator, threads

SHAPES = {  # slots, capacity, heads, shared heads, width
    "none": (0, 3, 2, 1, 4), "one of one": (1, 1, 1, 1, 1), "odd": (7, 40, 6, 2, 5),
    "multi-query": (5, 150, 8, 1, 32), "many columns": (3, 33, 2, 2, 40),
}  # fmt: skip


def cache(slots: int, capacity: int, heads: int, shared: int, width: int) -> list[Tensor]:
    g = generator()
    q = torch.randn(slots, heads, width, generator=g)
    keys, values = torch.randn(2, slots, capacity, shared, width, generator=g)
    lengths = torch.randint(1, capacity + 1, (slots,), generator=g)
    for one, n in zip((*keys, *values), lengths.tolist() * 2, strict=True):
        one[n:] = torch.nan  # must never be seen
    return [q, keys, values, lengths]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_is_the_last_row_of_causal_attention(shape: tuple[int, ...]) -> None:
    q, keys, values, lengths = cache(*shape)
    offsets = offsets_from_counts(lengths)
    rows = torch.arange(shape[1]) < lengths[:, None]
    queries = q.new_zeros(int(offsets[-1]), *q.shape[1:])
    queries[offsets[1:] - 1] = q
    packed = [t.double() for t in (queries, keys[rows], values[rows])]
    want = causal_attention(*packed, offsets)[offsets[1:] - 1]
    exact = decode_attention(q.double(), keys.double(), values.double(), lengths)
    torch.testing.assert_close(exact, want, rtol=1e-12, atol=1e-12)
    have = decode_attention(q, keys, values, lengths, backend="cpu")
    torch.testing.assert_close(have.double(), want, rtol=1e-6, atol=1e-6)


def test_a_slot_has_the_same_bits_alone_and_by_any_number_of_threads() -> None:
    q, keys, values, lengths = cache(*SHAPES["odd"])
    together = decode_attention(q, keys, values, lengths, backend="cpu")
    with threads(3):
        assert torch.equal(decode_attention(q, keys, values, lengths, backend="cpu"), together)
    for s in range(len(q)):
        alone = decode_attention(*(t[s : s + 1] for t in (q, keys, values, lengths)))
        assert torch.equal(alone[0], together[s])
    strided = keys.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(decode_attention(q, strided, values, lengths), together)


def test_registration() -> None:
    torch.library.opcheck(torch.ops.jetkern.decode_attention.default, cache(2, 4, 2, 1, 4))


def test_bad_input_is_refused() -> None:
    q, keys, values, lengths = cache(2, 4, 2, 2, 4)
    with pytest.raises(ValueError, match="no gradient"):
        decode_attention(q.requires_grad_(), keys, values, lengths)
    q = q.detach()
    with pytest.raises(ValueError, match="heads of keys must divide"):
        decode_attention(q[:, :1], keys, values, lengths)
    with pytest.raises(ValueError, match="lengths must be int64"):
        decode_attention(q, keys, values, lengths.int())
    for wrong in (0, 5):
        lengths[1] = wrong
        for backend, error in (("reference", ValueError), ("cpu", RuntimeError)):
            with pytest.raises(error, match=f"slot 1 is {wrong}, not 1 to 4"):
                decode_attention(q, keys, values, lengths, backend=backend)
