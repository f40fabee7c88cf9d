"""Importable ops on packed jets. One folder per op; `reference.py` there is its specification."""

from jetkern.ops.attention import attention
from jetkern.ops.attention_block import attention_block
from jetkern.ops.causal_attention import causal_attention
from jetkern.ops.decode_attention import decode_attention
from jetkern.ops.dispatch import register_compiled
from jetkern.ops.dynamic_tanh import dynamic_tanh
from jetkern.ops.knn import knn
from jetkern.ops.linear import linear
from jetkern.ops.linear_cross_entropy import linear_cross_entropy
from jetkern.ops.linear_cross_entropy_sum import linear_cross_entropy_sum
from jetkern.ops.local_block import local_block
from jetkern.ops.mlp import mlp
from jetkern.ops.nearest_code import nearest_code
from jetkern.ops.pair_bias import pair_bias, shared_pair_bias
from jetkern.ops.pair_features import (
    pair_features,
    pair_index,
    pair_offsets,
    unordered_entry,
    unordered_pairs,
)
from jetkern.ops.pair_mlp import pair_mlp
from jetkern.ops.pair_mlp.fold import fold_batch_norms
from jetkern.ops.parameters import BlockParameters, LinearParameters, MLPParameters
from jetkern.ops.sample_linear import sample_linear
from jetkern.ops.spline import spline

register_compiled()

__all__ = [
    "BlockParameters",
    "LinearParameters",
    "MLPParameters",
    "attention",
    "attention_block",
    "causal_attention",
    "decode_attention",
    "dynamic_tanh",
    "fold_batch_norms",
    "knn",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_sum",
    "local_block",
    "mlp",
    "nearest_code",
    "pair_bias",
    "pair_features",
    "pair_index",
    "pair_mlp",
    "pair_offsets",
    "sample_linear",
    "shared_pair_bias",
    "spline",
    "unordered_entry",
    "unordered_pairs",
]
