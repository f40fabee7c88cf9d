"""Malformed integers into every op: an error or the right result, never a crash."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from jetkern import ops
from tests.ops.helpers import generator, random_block, random_mlp, random_particles

PARTICLES, OFFSETS = random_particles([4, 0, 1, 6])
NEIGHBOURS = ops.knn(PARTICLES, OFFSETS, 3, backend="reference")
BLOCK, EMBED, PAIR = random_block(8, 12), random_mlp(7, 16, 8), random_mlp(3, 16, 2, norm=False)
BIAS = torch.randn(2, 53, generator=generator(1))
FEATURES = torch.randn(32, 3, generator=generator(2))
LAYERS = [ops.LinearParameters(PAIR.fc1_weight, PAIR.fc1_bias)]
X = torch.randn(11, 8, generator=generator(3))
Q = X.view(11, 2, 4)
EXTREME = [-(2**63), -(2**31), -11, -2, -1, 0, 1, 2, 10, 11, 12, 53, 2**31, 2**40, 2**63 - 1]
CALLS = {
    "knn": (OFFSETS, lambda o, b: ops.knn(PARTICLES, o, 3, backend=b)),
    "pair_bias": (OFFSETS, lambda o, b: ops.pair_bias(PARTICLES, o, PAIR, backend=b)),
    "pair_mlp": (OFFSETS, lambda o, b: ops.pair_mlp(FEATURES, o, LAYERS, backend=b)),
    "queries": (OFFSETS, lambda o, b: ops.attention(Q, Q, Q, o, OFFSETS, backend=b)),
    "keys": (OFFSETS, lambda o, b: ops.attention(Q, Q, Q, OFFSETS, o, backend=b)),
    "biased": (
        OFFSETS,
        lambda o, b: ops.attention(Q, Q, Q, OFFSETS, OFFSETS, BIAS, o, backend=b),
    ),
    "causal": (OFFSETS, lambda o, b: ops.causal_attention(Q, Q, Q, o, backend=b)),
    "block": (OFFSETS, lambda o, b: ops.attention_block(X, o, BLOCK, 2, backend=b)),
    "biased block": (
        OFFSETS,
        lambda o, b: ops.attention_block(X, OFFSETS, BLOCK, 2, BIAS, o, backend=b),
    ),
    "neighbours": (
        NEIGHBOURS,
        lambda n, b: ops.local_block(PARTICLES, n, EMBED, [BLOCK], 2, backend=b),
    ),
}


def malformed(right: Tensor, chance: random.Random) -> Tensor:
    """``right`` with a few entries replaced, of another length, dtype or shape."""
    value = right.clone()
    for _ in range(chance.randint(1, 3)):
        value.view(-1)[chance.randrange(value.numel())] = chance.choice(EXTREME)
    kind = chance.randrange(8)
    if kind == 0:
        value = value[: chance.randrange(len(value))]
    elif kind == 1:
        value = torch.cat([value, value[-1:]])
    elif kind == 2:
        value = value.to(chance.choice([torch.int16, torch.uint8, torch.bool, torch.float32]))
    elif kind == 3:
        value = value[None]
    elif kind == 4:
        value = value.clamp(-(2**31), 2**31 - 1).int()
    return value


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", CALLS)
def test_malformed_integers_are_an_error_or_harmless(name: str, backend: str) -> None:
    right, call = CALLS[name]
    want = call(right, backend)
    chance = random.Random(name)
    refused = 0
    for _ in range(60):
        value = malformed(right, chance)
        try:
            out = call(value, backend)
        except (ValueError, RuntimeError) as error:
            said = str(error).splitlines()
            assert len(said) == 1, said
            assert any(w in said[0] for w in ("offsets", "neighbours", "jet", "bias")), said
            refused += 1
        else:
            if name == "neighbours":
                assert out.shape == want.shape
                assert value.max() < len(PARTICLES)
            else:  # other jets, but jets
                assert value[0] == 0
                assert (value.diff() >= 0).all()
                assert out.shape[0] == want.shape[0]
            if value.shape == right.shape and (value == right).all():
                assert torch.equal(out, want)
    assert refused >= 20


@pytest.mark.parametrize("name", CALLS)
def test_integers_on_another_device_are_named(name: str) -> None:
    right, call = CALLS[name]
    with pytest.raises(ValueError, match="is on meta"):
        call(right.to("meta"), "auto")


@pytest.mark.parametrize("pairs", [-1, 0, 52, 54, 2**40])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_wrong_number_of_pairs_is_an_error(pairs: int, backend: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match="pairs"):
        ops.pair_bias(PARTICLES, OFFSETS, PAIR, num_pairs=pairs, backend=backend)
