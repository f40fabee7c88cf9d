"""A causal transformer that says what the next point of an ordered set is.

One class for several published models: a point is S classes or numbers, one in each stream, and
streams may run late (``jetkern.model.delay``) or follow each other within a row. OmniJet-alpha
(Birk, Hallin and Kasieczka, arXiv:2403.05618) has one stream, the codes of a tokeniser; SPADE
(arXiv:2606.11304) the three cells and the energy of a hit in a calorimeter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from jetkern import ops
from jetkern.jets import evenly, join_segments, last_rows, taken
from jetkern.model.config import unknown
from jetkern.model.delay import Rows, delayed
from jetkern.model.layers import MLP, DynamicTanh, Layer, initialise
from jetkern.model.streams import EndHead, MixtureHead, ValueEmbedding, steady_silu
from jetkern.ops.checks import check_offsets, check_shape
from jetkern.packed import Packed, check_rising, constant, readable, spread

NORMS = ("dyt", "layer")
POSITIONS = ("none", "rope")
ENDS = ("token", "hazard")
JOINTS = ("delay", "chain")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What a decoder is made of."""

    classes: tuple[int, ...]
    """of each stream, their number, 0 for a stream of numbers; the end of a set is one more of the
    first stream, see ``end``"""
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
    gated: bool = False
    """perceptrons are gated by a SiLU (SwiGLU, arXiv:2002.05202), and alone have biases"""
    registers: int = 0
    """learned rows in front of each set, which know nothing of it"""
    post_norm: bool = False
    """norms follow the sums, not what is added to them; there is none before the heads then"""
    positions: str = "none"
    """"rope" turns queries and keys by the rank in the set (arXiv:2104.09864)"""
    end: str = "token"
    """"token" for a class of the first stream; "hazard" for a draw of its own in each row"""
    joint: str = "delay"
    """"delay" draws the streams of a row apart; "chain" one after the other, each knowing those
    before it: exact without delays"""
    shift: tuple[float, ...] = ()
    """of each stream, subtracted from numbers before ``scale`` multiplies them; () for 0"""
    scale: tuple[float, ...] = ()
    """of each stream; () for 1"""
    lowest: tuple[float, ...] = ()
    """of each stream, the lowest number that there can be; a lower one counts as if it were this"""
    highest: tuple[float, ...] = ()
    """likewise; where both are equal, as for classes, or () there are no bounds"""
    components: int = 4
    """Gaussians of a stream of numbers"""
    head_hidden: int = 0
    """width of a hidden layer of the heads, 0 for none"""
    condition: int = 0
    """numbers of a set that every row knows"""
    types: int = 0
    """classes of a set that every row knows; 0 for none"""

    def __post_init__(self) -> None:
        for name in ("classes", "delays", "shift", "scale", "lowest", "highest"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("dim", "layers", "heads", "expansion"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.dim}")
        if self.shared_heads < 1 or self.heads % self.shared_heads:
            raise ValueError(f"kv_heads {self.kv_heads} do not divide the {self.heads} heads")
        if (
            not self.classes
            or min(self.classes) < 0
            or (self.end == "token" and not self.classes[0])
        ):
            raise ValueError(f"each stream must have classes, or 0 for numbers, got {self.classes}")
        late = list(self.delays)
        if len(late) != len(self.classes) or late[0] != 0 or late != sorted(late):
            raise ValueError(
                f"delays must begin with 0 and never fall, one of each of the "
                f"{len(self.classes)} streams, got {self.delays}"
            )
        choices = {"norm": NORMS, "positions": POSITIONS, "end": ENDS, "joint": JOINTS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        self._check_streams(late)
        if self.positions == "rope" and self.dim // self.heads % 2:
            raise ValueError(f"rope turns pairs: heads of {self.dim // self.heads} are odd")

    def _check_streams(self, late: list[int]) -> None:
        if self.joint == "chain" and late[-1]:
            raise ValueError(f"a chain has no delays, got {self.delays}")
        for name in ("shift", "scale", "lowest", "highest"):
            given = getattr(self, name)
            if given and len(given) != len(self.classes):
                raise ValueError(
                    f"{name} must have one of each of {len(late)} streams, got {given}"
                )
        if self.scale and min(self.scale) <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")
        if len(self.lowest) != len(self.highest) or any(
            low > high or (classes and low != high)
            for low, high, classes in zip(self.lowest, self.highest, self.classes, strict=False)
        ):
            raise ValueError(
                f"lowest and highest are bounds of streams of numbers, equal for those of classes, "
                f"got {self.lowest} and {self.highest}"
            )
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}")
        for name in ("head_hidden", "condition", "types", "registers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def numbers(self) -> bool:
        """Whether there are streams of numbers, so that points are floating."""
        return 0 in self.classes

    def bounds(self, stream: int) -> tuple[float, float] | None:
        """Lowest and highest number of a stream on the model's scale, None for no bounds."""
        if not self.lowest or self.lowest[stream] == self.highest[stream]:
            return None
        shift = self.shift[stream] if self.shift else 0.0
        scale = self.scale[stream] if self.scale else 1.0
        return (self.lowest[stream] - shift) * scale, (self.highest[stream] - shift) * scale

    @property
    def shared_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads


_SPADE = {
    "dim": 256, "layers": 3, "heads": 8, "kv_heads": 1, "expansion": 4, "norm": "layer",
    "positions": "rope", "end": "hazard", "gated": True, "registers": 2,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    # Of the authors' released configuration; its table and head have a start and a stop token each,
    # of which only the start is read and only the stop can be drawn: 513 numbers fewer here.
    "omnijet": {
        "classes": (8192,), "dim": 256, "layers": 3, "heads": 8, "expansion": 4,
        "norm": "layer", "post_norm": True,
    },
    "omnijet-c": {
        "classes": (65_536,), "dim": 256, "layers": 3, "heads": 8, "expansion": 4,
        "norm": "layer", "post_norm": True,
    },
    # Layer, x, y, ln E / MeV of photons of 10 to 100 GeV in 30 x 30 x 30 cells. Released is a
    # network beside the transformer that ends sets.
    "spade": {
        "classes": (30, 30, 30, 0), "delays": (0, 1, 2, 3), "shift": (0, 0, 0, -1.5),
        "scale": (1, 1, 1, 0.91), "head_hidden": 128, "condition": 1, **_SPADE,
    },
    "combined": {
        "classes": (27_000, 0), "delays": (0, 1), "shift": (0, -1.5), "scale": (1, 0.91),
        "condition": 1, **_SPADE,
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
        return ops.linear(hidden.relu_(), self.fc2.weight, self.fc2.bias, precision=self.precision)


class GatedMLP(Layer):
    """fc1 to gates and values, SiLU of the gates, times the values, fc2."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        both = ops.linear(x, self.fc1.weight, self.fc1.bias, precision=self.precision)
        gate, value = both.chunk(2, 1)
        hidden = steady_silu(gate) * value
        return ops.linear(hidden, self.fc2.weight, self.fc2.bias, precision=self.precision)


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
        self.out = nn.Linear(dim, dim, bias=not plain and not config.gated)
        self.norm2 = _norm(config)
        self.mlp: Layer
        if config.gated:
            self.mlp = GatedMLP(dim, hidden)
        else:
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
    """Likelihoods of ordered sets of points, each of S classes or numbers.

    A row's input is the sum of its streams' embeddings, as of MusicGen (arXiv:2306.05284), and of
    what is known of its set; what a stream has not to read yet, and so the start of a set, is an
    embedding, too, but no class that can be drawn. Streams of one row are independent given the
    earlier rows, but in a chain.

    Args:
        config: what it is made of.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.embeddings = nn.ModuleList(_reader(n, dim) for n in config.classes)
        self.registers = None
        if config.registers:
            self.registers = nn.Parameter(torch.empty(config.registers, dim))
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.layers))
        self.norm = None if config.post_norm else _norm(config)
        outputs = list(config.classes)
        outputs[0] += config.end == "token"
        width = config.head_hidden or dim
        self.heads = nn.ModuleList(
            nn.Linear(width, n) if n else MixtureHead(width, config.components, config.bounds(s))
            for s, n in enumerate(outputs)
        )
        chain = outputs[:-1] if config.joint == "chain" else []
        self.links = nn.ModuleList(_reader(n, dim) for n in chain)
        hidden = range(len(outputs) if config.head_hidden else 0)
        self.hidden = nn.ModuleList(nn.Linear(dim, width) for _ in hidden)
        self.end = EndHead(dim) if config.end == "hazard" else None
        self.context: MLP | None = None
        if config.condition:
            self.context = MLP(config.condition, config.expansion * dim, dim, norm=False)
        self.kinds = nn.Embedding(config.types, dim) if config.types else None
        initialise(self)
        if self.registers is not None:
            nn.init.normal_(self.registers)  # as embeddings

    def embed(self, inputs: Tensor) -> Tensor:
        """(R, D) rows of (R, S) classes or numbers."""
        streams = [
            _read(table, column) for table, column in zip(self.embeddings, inputs.T, strict=True)
        ]
        return torch.stack(streams).sum(0) if len(streams) > 1 else streams[0]

    def known(self, condition: Tensor | None = None, types: Tensor | None = None) -> Tensor | None:
        """(B, D) what every row of a set knows, None if the model reads nothing of sets.

        Args:
            condition: (B, C) numbers; types: (B,) int64 classes.

        Raises:
            ValueError: if there is not what the model reads, or what it does not read.
        """
        config, parts = self.config, []
        if (condition is not None) != bool(config.condition):
            raise ValueError(f"the model has {config.condition} numbers of a condition")
        if (types is not None) != bool(config.types):
            raise ValueError(f"the model has {config.types} types of sets")
        if condition is not None and self.context is not None:
            check_shape("condition", condition, None, config.condition)
            parts.append(self.context(condition.to(self.context.fc1.weight.dtype)))
        if types is not None and self.kinds is not None:
            parts.append(self.kinds(types))
        return sum(parts[1:], parts[0]) if parts else None

    def forward(self, inputs: Tensor, packed: Packed, known: Tensor | None = None) -> Tensor:
        """(R, D) what the heads read, of (R, S) classes; those of a row are known to it.

        Args:
            inputs, packed: as in ``jetkern.model.delay.Rows``; known: (B, D), see ``known``.
        """
        x = self.embed(inputs)
        return self.mix(x if known is None else x + spread(known, packed, len(x)), packed)

    def mix(self, x: Tensor, packed: Packed) -> Tensor:
        """(R, D) what the heads read, of (R, D) embedded rows."""
        total, layout = len(x), packed
        if self.registers is not None:
            front, each = evenly(packed.offsets, len(self.registers)), len(self.registers)
            own = (self.registers.repeat(len(packed), 1), front)
            x, offsets = join_segments([own, (x, packed.offsets)])
            known = packed.known_counts
            layout = Packed.trusted(offsets, counts=None if known is None else known + each)
        for block in self.blocks:
            x = block(x, layout)
        if layout is not packed:
            x = taken(x, last_rows(layout.offsets, packed.offsets, total))
        return x if self.norm is None else self.norm(x)

    def read_by_head(self, x: Tensor, stream: int, before: Sequence[Tensor]) -> Tensor:
        """(R, width) what the head of a stream reads.

        Args:
            x: (R, D) what all heads read; stream: from 0.
            before: (R,) values of the earlier streams of the same row, which a chain reads.
        """
        if self.config.joint == "chain":
            for link, value in zip(self.links, before, strict=False):
                x = x + _read(link, value)
        if not self.config.head_hidden:
            return x
        layer = cast(nn.Linear, self.hidden[stream])
        return gelu(ops.linear(x, layer.weight, layer.bias, precision=self.precision))

    def target_losses(self, x: Tensor, targets: Tensor) -> Tensor:
        """(R, S) -ln p in nats, 0 where there is no target; (R, S + 1) where ends are apart.

        Args:
            x: (R, D) what the heads read; targets: as in ``jetkern.model.delay.Rows``.
        """
        return torch.stack(list(self._losses(x, targets, ops.linear_cross_entropy)), 1)

    def target_totals(self, x: Tensor, targets: Tensor) -> Tensor:
        """(S,) or (S + 1,) the sums of ``target_losses`` over rows, whose gradient takes less."""
        found = self._losses(x, targets, ops.linear_cross_entropy_sum)
        return torch.stack([losses.sum() for losses in found])

    def _losses(self, x: Tensor, targets: Tensor, of_classes: Any) -> Iterator[Tensor]:
        """Stream by stream -ln p of rows; of classes as that op computes it."""
        columns = list(targets.T)
        classes = self.config.classes
        chained = [c.clamp(min=0) if n else c for c, n in zip(columns, classes, strict=False)]
        for s, head in enumerate(self.heads):
            read, target = self.read_by_head(x, s, chained[:s]), columns[s].contiguous()
            if isinstance(head, MixtureHead):
                scale = self.config.scale[s] if self.config.scale else 1.0
                known = target.isfinite().to(target.dtype)
                yield head.losses(read, target) - known * math.log(scale)
                continue
            layer = cast(nn.Linear, head)
            yield of_classes(
                read, layer.weight, layer.bias, target.long(), precision=self.precision
            )
        if self.end is not None:
            yield self.end.losses(x, columns[-1])

    def row_losses(
        self,
        points: Tensor,
        offsets: Tensor | Packed,
        condition: Tensor | None = None,
        types: Tensor | None = None,
    ) -> tuple[Tensor, Packed]:
        """(R, S) -ln p of what each row predicts, in nats, 0 where it predicts nothing, and the
        layout of the rows; (R, S + 1) with the end last where it is apart. Arguments and errors as
        for ``negative_log_likelihood``."""
        x, rows = self._rows(points, offsets, condition, types)
        return self.target_losses(x, rows.targets), rows.packed

    def _rows(
        self,
        points: Tensor,
        offsets: Tensor | Packed,
        condition: Tensor | None,
        types: Tensor | None,
    ) -> tuple[Tensor, Rows]:
        """What heads read, and what comes next."""
        packed = offsets if isinstance(offsets, Packed) else Packed(offsets)
        self.check_points(points, packed)
        config = self.config
        if config.numbers:
            points = self.scaled(points)
        rows = delayed(points, packed, config.delays, config.classes, hazard=self.end is not None)
        return self(rows.inputs, rows.packed, self.known(condition, types)), rows

    def negative_log_likelihood(
        self,
        points: Tensor,
        offsets: Tensor | Packed,
        condition: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """(B,) -ln p of each set, its end included, in nats: exact, from one pass.

        Args:
            points: (T, S) int64 classes from 0; floating if there are streams of numbers, whose
                densities are those of the numbers as they are given.
            offsets: (B + 1,) points of each set, or a ``Packed``. Sets may be empty.
            condition: (B, C) numbers of each set; types: (B,) int64 its class; None for a model
                that does not read them.

        Raises:
            ValueError: for wrong shapes or dtypes, and on a CPU for what is no class of its stream
                and for numbers that are not finite.
        """
        losses, packed = self.row_losses(points, offsets, condition, types)
        return torch.segment_reduce(losses.sum(1), "sum", offsets=packed.offsets, initial=0.0)

    def loss(
        self,
        points: Tensor,
        offsets: Tensor | Packed,
        condition: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """What next-point training minimises: -ln p of the batch, ends included, over its points.

        In nats per point, of all points of the batch alike: what padding there would be in other
        layouts never counts, and a batch without points is divided by 1. Arguments and errors as
        for ``negative_log_likelihood``.
        """
        x, rows = self._rows(points, offsets, condition, types)
        return self.target_totals(x, rows.targets).sum() / max(points.shape[0], 1)

    def scaled(self, points: Tensor) -> Tensor:
        """(T, S) points of the weights' dtype, numbers on the model's scale."""
        points = points.to(self.blocks[0].qkv_weight.dtype)  # type: ignore[arg-type]
        config, like = self.config, (points.dtype, points.device)
        if config.shift:
            points = points - constant(_of_numbers(config.shift, config.classes, 0.0), *like)
        if config.scale:
            points = points * constant(_of_numbers(config.scale, config.classes, 1.0), *like)
        return points

    def unscaled(self, points: Tensor) -> Tensor:
        """(T, S) the inverse of ``scaled``."""
        config, like = self.config, (points.dtype, points.device)
        if config.scale:
            points = points / constant(_of_numbers(config.scale, config.classes, 1.0), *like)
        if config.shift:
            points = points + constant(_of_numbers(config.shift, config.classes, 0.0), *like)
        return points

    def wrong(self, points: Tensor) -> Tensor:
        """(T, S) bool, true for what is no class of its stream, or no finite number."""
        classes = constant(self.config.classes, points.dtype, points.device)
        found = (points < 0) | (points >= classes)
        if not self.config.numbers:
            return found
        return torch.where(classes == 0, ~points.isfinite(), found | (points != points.floor()))

    def check_points(self, points: Tensor, packed: Packed) -> None:
        """Raises ValueError as ``negative_log_likelihood`` does for points and their layout."""
        classes, numbers = self.config.classes, self.config.numbers
        check_shape("points", points, None, len(classes))
        if not (points.is_floating_point() if numbers else points.dtype == torch.int64):
            kind = "floating" if numbers else "int64"
            raise ValueError(f"points must be {kind}, got {points.dtype}")
        check_offsets("offsets", packed, points)
        check_rising("offsets", packed.offsets, points.shape[0])
        if not readable(points):
            return
        wrong = self.wrong(points)
        if wrong.any():
            row, stream = wrong.nonzero()[0].tolist()
            owner = int(packed.owner(points.shape[0])[row])
            value = points[row, stream].item()
            kind = f"class {value}" if classes[stream] else f"the number {value}"
            has = f"{classes[stream]} classes" if classes[stream] else "finite numbers"
            raise ValueError(
                f"point {row - int(packed.offsets[owner])} of set {owner} has {kind} in stream "
                f"{stream}, which has {has}"
            )


def _reader(classes: int, dim: int) -> nn.Module:
    """What embeds the classes of a stream and one more, or its numbers and none."""
    return nn.Embedding(classes + 1, dim) if classes else ValueEmbedding(dim)


def _read(table: nn.Module, column: Tensor) -> Tensor:
    found: Tensor = table(column.long() if isinstance(table, nn.Embedding) else column)
    return found


def _of_numbers(
    values: tuple[float, ...], classes: tuple[int, ...], other: float
) -> tuple[float, ...]:
    return tuple(other if n else float(v) for v, n in zip(values, classes, strict=True))
