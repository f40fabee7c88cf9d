"""A causal transformer that says what the next point of an ordered set is.

One class for several published models: a point is S classes, one in each stream, and streams may
run late (``jetkern.model.delay``). OmniJet-alpha (Birk, Hallin and Kasieczka, arXiv:2403.05618) has
one stream, the codes of a tokeniser.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from jetkern import ops
from jetkern.model.config import unknown
from jetkern.model.delay import delayed
from jetkern.model.layers import MLP, DynamicTanh, Layer, initialise
from jetkern.ops.checks import check_offsets, check_shape
from jetkern.packed import Packed, check_rising, readable

NORMS = ("dyt", "layer")
POSITIONS = ("none", "rope")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What a decoder is made of."""

    classes: tuple[int, ...]
    """of each stream, their number; the end of a set is one more of the first stream"""
    delays: tuple[int, ...] = (0,)
    """rows that each stream runs late: from 0, never falling"""
    dim: int
    """width D"""
    layers: int
    """transformer blocks"""
    heads: int
    """attention heads"""
    kv_heads: int | None = None
    """heads of keys and values, which serve an equal number of heads each; None for ``heads``"""
    expansion: int = 2
    """hidden width of the perceptrons over D"""
    norm: str = "dyt"
    """"dyt" for DynamicTanh and GELU, as in PET; "layer" for LayerNorm and ReLU"""
    post_norm: bool = False
    """norms follow the sums, not what is added to them; there is none before the heads then"""
    positions: str = "none"
    """"rope" turns queries and keys by the rank in the set (arXiv:2104.09864)"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "delays", tuple(self.delays))
        for name in ("dim", "layers", "heads", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.dim}")
        if self.shared_heads < 1 or self.heads % self.shared_heads:
            raise ValueError(f"kv_heads {self.kv_heads} do not divide the {self.heads} heads")
        if not self.classes or min(self.classes) < 1:
            raise ValueError(f"each stream must have classes, got {self.classes}")
        late = list(self.delays)
        if len(late) != len(self.classes) or late[0] != 0 or late != sorted(late):
            raise ValueError(
                f"delays must begin with 0 and never fall, one of each of the "
                f"{len(self.classes)} streams, got {self.delays}"
            )
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if self.positions not in POSITIONS:
            raise unknown("positions", self.positions, POSITIONS)
        if self.positions == "rope" and self.dim // self.heads % 2:
            raise ValueError(f"rope turns pairs: heads of {self.dim // self.heads} are odd")

    @property
    def shared_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads


# Of the authors' released configuration; its table and head have a start and a stop token each,
# of which only the start is read and only the stop can be drawn: 513 numbers fewer here.
PRESETS: dict[str, dict[str, Any]] = {
    "omnijet": {
        "classes": (8192,), "dim": 256, "layers": 3, "heads": 8, "expansion": 4,
        "norm": "layer", "post_norm": True,
    },
}  # fmt: skip


def decoder_preset(name: str, **changes: Any) -> DecoderConfig:
    """The configuration of one of ``PRESETS``, with changes.

    Raises:
        ValueError: for an unknown preset or change.
    """
    if name not in PRESETS:
        raise unknown("decoder", name, PRESETS)
    known = [field.name for field in dataclasses.fields(DecoderConfig)]
    for change in changes:
        if change not in known:
            raise unknown("field of a decoder", change, known)
    return DecoderConfig(**{**PRESETS[name], **changes})


def rotary(x: Tensor, rank: Tensor, base: float = 10_000.0) -> Tensor:
    """Turns pair i of each head by rank / base^(2 i / d) (Su et al., arXiv:2104.09864, eq. 15).

    Args:
        x: (T, H, d) with even d, in pairs of neighbours; rank: (T,) places in the sets.
    """
    width = x.shape[-1]
    exponent = torch.arange(0, width, 2, device=x.device, dtype=torch.float64) / width
    angle = rank[:, None, None] * base**-exponent  # float32 has 4 digits after rank 1,000
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _norm(config: DecoderConfig) -> nn.Module:
    return DynamicTanh(config.dim) if config.norm == "dyt" else nn.LayerNorm(config.dim)


class ReLUMLP(Layer):
    """fc1, ReLU, fc2."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = ops.linear(x, self.fc1.weight, self.fc1.bias, precision=self.precision)
        return ops.linear(relu(hidden), self.fc2.weight, self.fc2.bias, precision=self.precision)


class CausalBlock(Layer):
    """Transformer block in which rows attend to those of their set up to and with themselves."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.expansion * config.dim
        self.heads, self.kv_heads = config.heads, config.shared_heads
        self.width = dim // config.heads
        self.post_norm = config.post_norm
        self.rope = config.positions == "rope"
        plain = config.norm == "dyt"
        self.norm1 = _norm(config)
        self.qkv_weight = nn.Parameter(
            torch.empty((self.heads + 2 * self.kv_heads) * self.width, dim)
        )
        self.out = nn.Linear(dim, dim, bias=not plain)
        self.norm2 = _norm(config)
        self.mlp = MLP(dim, hidden, dim) if plain else ReLUMLP(dim, hidden)

    def project(self, x: Tensor, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, H, d) queries, and (T, G, d) keys and values, of rows (T, D) at ranks (T,)."""
        x = x if self.post_norm else self.norm1(x)
        heads = ops.linear(x, self.qkv_weight, precision=self.precision)
        q, k, v = heads.unflatten(1, (-1, self.width)).split(
            [self.heads, self.kv_heads, self.kv_heads], 1
        )
        return (rotary(q, rank), rotary(k, rank), v) if self.rope else (q, k, v)

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """(T, D) rows after the block, from those before it and the (T, H, d) mixed values."""
        x = x + ops.linear(
            mixed.flatten(1), self.out.weight, self.out.bias, precision=self.precision
        )
        if self.post_norm:
            x = self.norm1(x)
            return self.norm2(x + self.mlp(x))
        return x + self.mlp(self.norm2(x))

    def forward(self, x: Tensor, packed: Packed) -> Tensor:
        q, k, v = self.project(x, packed.rank(x.shape[0]))
        return self.finish(x, ops.causal_attention(q, k, v, packed, precision=self.precision))


class Decoder(Layer):
    """Likelihoods of ordered sets of points, each of S classes.

    A row's input is the sum of its streams' embeddings, as of MusicGen (arXiv:2306.05284); what a
    stream has not to read yet, and so the start of a set, is an embedding, too, but no class that
    can be drawn. Streams of one row are independent given the earlier rows.

    Args:
        config: what it is made of.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.embeddings = nn.ModuleList(nn.Embedding(n + 1, dim) for n in config.classes)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.layers))
        self.norm = None if config.post_norm else _norm(config)
        outputs = (config.classes[0] + 1, *config.classes[1:])
        self.heads = nn.ModuleList(nn.Linear(dim, n) for n in outputs)
        initialise(self)

    def embed(self, inputs: Tensor) -> Tensor:
        """(R, D) rows of (R, S) classes."""
        streams = [table(column) for table, column in zip(self.embeddings, inputs.T, strict=True)]
        return torch.stack(streams).sum(0) if len(streams) > 1 else streams[0]

    def forward(self, inputs: Tensor, packed: Packed) -> Tensor:
        """(R, D) what the heads read, of (R, S) classes; those of a row are known to it.

        Args:
            inputs, packed: as in ``jetkern.model.delay.Rows``.
        """
        return self.mix(self.embed(inputs), packed)

    def mix(self, x: Tensor, packed: Packed) -> Tensor:
        """(R, D) what the heads read, of (R, D) embedded rows."""
        for block in self.blocks:
            x = block(x, packed)
        return x if self.norm is None else self.norm(x)

    def target_losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """(R, S) -ln p in nats, 0 where there is no target.

        Args:
            x: (R, D) what the heads read; targets: as in ``jetkern.model.delay.Rows``.
        """
        losses = []
        for head, target in zip(self.heads, targets.T, strict=True):
            layer = cast(nn.Linear, head)
            losses.append(
                ops.linear_cross_entropy(
                    x, layer.weight, layer.bias, target.contiguous(), precision=self.precision
                )
            )
        return torch.stack(losses, 1)

    def row_losses(self, points: Tensor, offsets: Tensor | Packed) -> tuple[Tensor, Packed]:
        """(R, S) -ln p of what each row predicts, in nats, 0 where it predicts nothing, and the
        layout of the rows. Arguments and errors as for ``negative_log_likelihood``."""
        packed = offsets if isinstance(offsets, Packed) else Packed(offsets)
        self._check(points, packed)
        rows = delayed(points, packed, self.config.delays, self.config.classes)
        x = self(rows.inputs, rows.packed)
        return self.target_losses(x, rows.targets), rows.packed

    def negative_log_likelihood(self, points: Tensor, offsets: Tensor | Packed) -> Tensor:
        """(B,) -ln p of each set, its end included, in nats: exact, from one pass.

        Args:
            points: (T, S) int64 classes from 0.
            offsets: (B + 1,) points of each set, or a ``Packed``. Sets may be empty.

        Raises:
            ValueError: for wrong shapes or dtypes, and on a CPU for what is no class of its stream.
        """
        losses, packed = self.row_losses(points, offsets)
        return torch.segment_reduce(losses.sum(1), "sum", offsets=packed.offsets, initial=0.0)

    def loss(self, points: Tensor, offsets: Tensor | Packed) -> Tensor:
        """What next-point training minimises: -ln p of the batch, ends included, over its points.

        In nats per point, of all points of the batch alike: what padding there would be in other
        layouts never counts, and a batch without points is divided by 1. Arguments and errors as
        for ``negative_log_likelihood``.
        """
        losses, _ = self.row_losses(points, offsets)
        return losses.sum() / max(points.shape[0], 1)

    def _check(self, points: Tensor, packed: Packed) -> None:
        check_shape("points", points, None, len(self.config.classes))
        if points.dtype != torch.int64:
            raise ValueError(f"points must be int64, got {points.dtype}")
        check_offsets("offsets", packed, points)
        check_rising("offsets", packed.offsets, points.shape[0])
        if not readable(points):
            return
        wrong = (points < 0) | (points >= points.new_tensor(self.config.classes))
        if wrong.any():
            row, stream = wrong.nonzero()[0].tolist()
            owner = int(packed.owner(points.shape[0])[row])
            raise ValueError(
                f"point {row - int(packed.offsets[owner])} of set {owner} has class "
                f"{int(points[row, stream])} in stream {stream}, which has "
                f"{self.config.classes[stream]} classes"
            )
