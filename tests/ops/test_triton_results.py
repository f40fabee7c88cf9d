"""What PyTorch asks of the results of the Triton operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jetkern.ops import attention_block, knn, local_block, mlp
from jetkern.ops.parameters import tensors
from tests.ops.helpers import (
    generator,
    moved,
    random_block,
    random_mlp,
    random_particles,
    triton_device,
)

pytest.importorskip("triton", reason="needs Triton")


class Results(TorchDispatchMode):
    """Asserts of every Triton op that runs that its results share no memory and are aligned."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "jetkern_triton":
            self.seen.add(func._opname)
            results = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.numel()]
            storages = {t.untyped_storage().data_ptr() for t in results}
            assert len(storages) == len(results), func
            assert all(t.data_ptr() % 16 == 0 for t in results), func  # as Inductor assumes
        return out


@pytest.mark.parametrize(("width", "hidden"), [(32, 64), (32, 65), (144, 145)])
def test_results_share_no_memory(width: int, hidden: int) -> None:
    """Else an op is no custom op, and a compiled model's alignment checks fail on a GPU."""
    particles, offsets = random_particles([5, 3])
    neighbours = knn(particles, offsets, 3, backend="reference")
    embed, block = random_mlp(7, 64, width), random_block(width, hidden)
    x = torch.randn(8, width, generator=generator(0))
    inputs = moved((x, offsets, particles, neighbours, embed, block), triton_device())
    x, offsets, particles, neighbours, embed, block = inputs
    leaves = [w.requires_grad_() for w in tensors(block)]
    with Results() as results:
        for out in (
            mlp(x, block.mlp, backend="triton"),
            attention_block(x, offsets, block, 4, backend="triton"),
            local_block(particles, neighbours, embed, [block], 4, backend="triton"),
        ):
            torch.autograd.grad(out.sum(), leaves, allow_unused=True)
    assert {"mlp_backward", "attention_block_backward"} < results.seen
