"""The Triton kernel in Triton's interpreter; on a GPU the same tests run on it."""

import pytest
import torch
from test_decode_attention import SHAPES, cache

from jetkern.ops import decode_attention
from tests.ops.helpers import triton_device

pytest.importorskip("triton", reason="needs Triton")

MORE = {
    "over a block": (3, 70, 2, 1, 16), "a whole block": (2, 64, 1, 1, 33),
    "widest": (2, 40, 2, 2, 128), "no heads' width": (2, 5, 3, 3, 1),
}  # fmt: skip


def on(device: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.to(device) for t in inputs]


@pytest.mark.parametrize("shape", [*SHAPES.values(), *MORE.values()], ids=[*SHAPES, *MORE])
def test_is_what_float64_says(shape: tuple[int, ...]) -> None:
    q, keys, values, lengths = cache(*shape)  # NaN behind each slot's rows
    if shape[0] > 1:
        lengths[0], lengths[1] = 1, shape[1]
        keys, values = keys.nan_to_num(0.5), values.nan_to_num(-0.5)
        keys[0, 1:] = values[0, 1:] = torch.nan
    want = decode_attention(q.double(), keys.double(), values.double(), lengths)
    given = on(triton_device(), [q, keys, values, lengths])
    have = decode_attention(*given, backend="triton")
    torch.testing.assert_close(have.double().cpu(), want, rtol=2e-6, atol=2e-6)


def test_halves_are_rounded_once() -> None:
    q, keys, values, lengths = cache(*SHAPES["odd"])
    half = [t.bfloat16() for t in (q, keys, values)]
    want = decode_attention(*(t.double() for t in half), lengths)
    given = on(triton_device(), [*half, lengths])
    have = decode_attention(*given, backend="triton", precision="bf16")
    assert have.dtype == torch.bfloat16
    torch.testing.assert_close(have.double().cpu(), want, rtol=2**-8, atol=2**-9)


def test_steep_scores_and_what_is_no_number_stay_in_their_slot() -> None:
    q, keys, values, lengths = cache(4, 40, 2, 1, 8)
    lengths[:] = torch.tensor([40, 33, 5, 40])
    keys, values = keys.nan_to_num(0.1), values.nan_to_num(0.1)
    q[0] *= 1e3  # the softmax is one of a single row
    keys[1, 32] = torch.nan
    given = on(triton_device(), [q, keys, values, lengths])
    have = decode_attention(*given, backend="triton").cpu()
    want = decode_attention(q.double(), keys.double(), values.double(), lengths)
    assert have[1].isnan().all()
    torch.testing.assert_close(have.double()[[0, 2, 3]], want[[0, 2, 3]], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(have.double()[2:], want[2:], rtol=2e-6, atol=2e-6)


def test_a_slot_has_the_same_bits_alone_and_in_other_layouts() -> None:
    inputs = on(triton_device(), cache(*SHAPES["odd"]))
    together = decode_attention(*inputs, backend="triton")
    for s in range(len(inputs[0])):
        alone = decode_attention(*(t[s : s + 1] for t in inputs), backend="triton")
        assert torch.equal(alone[0], together[s])
    q, keys, values, lengths = inputs
    strided = keys.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(decode_attention(q, strided, values, lengths, backend="triton"), together)


def test_lengths_past_the_capacity_read_no_rows_that_are_not_there() -> None:
    q, keys, values, _ = cache(2, 8, 2, 1, 4)
    keys, values = keys.nan_to_num(0.3), values.nan_to_num(0.3)
    whole = torch.tensor([8, 8])
    device = triton_device()
    want = decode_attention(*on(device, [q, keys, values, whole]), backend="triton")
    if device == "cuda":  # on a CPU the op itself refuses them
        have = decode_attention(*on(device, [q, keys, values, whole + 5]), backend="triton")
    else:
        have = torch.ops.jetkern_triton.decode_attention(q, keys, values, whole + 5)
    assert torch.equal(have, want)


def test_wider_heads_are_for_others() -> None:
    inputs = on(triton_device(), cache(1, 2, 1, 1, 130))
    with pytest.raises(ValueError, match="heads are 130 wide, more than 128"):
        decode_attention(*inputs, backend="triton")


def test_registration() -> None:
    inputs = on(triton_device(), cache(2, 4, 2, 1, 4))
    decode_attention(*inputs, backend="triton")
    torch.library.opcheck(torch.ops.jetkern_triton.decode_attention.default, inputs)
