"""The transformer block, written plainly. This file is the specification."""

from torch import Tensor

from jetkern.ops.attention.reference import attention
from jetkern.ops.dynamic_tanh.reference import dynamic_tanh
from jetkern.ops.mlp.reference import mlp
from jetkern.ops.parameters import BlockParameters
from jetkern.packed import Packed


def attention_block(
    x: Tensor,
    offsets: Tensor,
    parameters: BlockParameters,
    heads: int,
    bias: Tensor | None,
    particles: Packed | None,
) -> Tensor:
    p = parameters
    qkv = dynamic_tanh(x, p.alpha1, p.gamma1) @ p.qkv_weight.t()
    q, k, v = qkv.unflatten(1, (3, heads, -1)).unbind(1)
    mixed = attention(q, k, v, offsets, offsets, bias, particles)
    x = x + mixed.flatten(1) @ p.out_weight.t()
    return x + mlp(dynamic_tanh(x, p.alpha2, p.gamma2), p.mlp)
