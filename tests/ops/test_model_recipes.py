"""The recipes of docs/models.md give what the padded originals give."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from jetkern import unpack
from tests.test_documents import blocks

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_recipes_are_what_they_stand_for() -> None:
    names: dict[str, Any] = {}
    block, encoder, pooling, edges, registers, _ = blocks(PAGE, "python")
    exec(block, names)
    layer = names["Block"](64, 4).eval()
    offsets = names["offsets"]
    x = names["pack"](names["padded"], names["mask"])[0]
    torch.testing.assert_close(layer(x, names["rows"]), plain_block(layer, x, offsets))

    exec(encoder, names)
    want = names["layer"].eval()(names["padded"], src_key_padding_mask=~names["mask"])
    torch.testing.assert_close(names["y"], want[names["mask"]], atol=1e-5, rtol=1e-5)

    exec(pooling, names)
    first, last = int(offsets[2]), int(offsets[3])
    k, v = (names[n][first:last].transpose(0, 1) for n in "kv")
    want = scaled_dot_product_attention(names["queries"].transpose(0, 1), k, v).transpose(0, 1)
    torch.testing.assert_close(names["pooled"][6:9], want)

    before = names["x"]
    exec(edges, names)
    rows, update, n = before[first:last], names["update"], last - first
    near = torch.cdist(rows.double(), rows.double()).fill_diagonal_(torch.inf).argsort(1)
    near = near[:, : min(16, n - 1)]
    pairs = torch.cat([rows[:, None].expand(-1, near.shape[1], -1), rows[near] - rows[:, None]], 2)
    norm = update[1]  # in training: with the statistics of all edges
    mean_and_var = norm.running_mean * 10, (norm.running_var - 0.9) * 10
    count = names["there"].sum()
    hidden = update[0](pairs) - mean_and_var[0]
    hidden = hidden / (mean_and_var[1] * (count - 1) / count + norm.eps).sqrt()
    want = hidden.relu().mean(1)
    torch.testing.assert_close(names["x"][first:last], want, atol=1e-4, rtol=1e-3)

    exec(registers, names)
    assert torch.equal(names["particles"], names["x"])
    assert torch.equal(names["joined"][:8], names["registers"])


def plain_block(layer: Any, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The same block on padded rows."""
    rows, mask = unpack(x, offsets)
    q, k, v = layer.qkv(layer.norm1(rows)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    rows = rows + layer.out(mixed.transpose(1, 2).flatten(2))
    gate, up = layer.gate_and_up(layer.norm2(rows)).chunk(2, 2)
    return (rows + layer.down(torch.nn.functional.silu(gate) * up))[mask]
