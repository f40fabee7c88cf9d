"""EPiC, the velocity field of EPiC-FM (arXiv 2312.00123): a jet's particles meet only through
their mean and sum.

A layer updates a short vector of the jet from the pooled particles, then each particle from that
vector. What is the same for all particles of a jet enters a product once for each jet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from jetkern import ops
from jetkern.jets import Jets
from jetkern.model.columns import joined
from jetkern.model.config import check_columns, check_conditions, fields_of, unknown
from jetkern.model.layers import Layer, set_precision
from jetkern.packed import Packed, constant, segment_sums, spread

SUM_SCALE = 0.01  # of the pooled sums


@dataclass(frozen=True, kw_only=True)
class EPiCConfig:
    """What an EPiC velocity field is made of; ``EPIC_SIZES`` has that of the paper's code."""

    layers: int
    """EPiC layers after the stem"""
    dim: int
    """hidden width, and that of the particles"""
    latent: int
    """width of the jet's vector"""
    time_features: int = 32
    """cosines of pi t e^k, k from 0"""
    out_activation: bool = False
    """the velocity passes through a leaky ReLU, too, as in the paper's code"""
    num_classes: int = 1
    """jet types"""
    condition_dim: int = 0
    """jet-level quantities that condition the model; 0 for none"""
    condition_scale: tuple[float, ...] | None = None
    """what the conditions are divided by, one number each; None for 1"""
    columns: tuple[str, ...] = ()
    """what is made of a particle beside its kinematics, see ``jetkern.model.columns``"""
    noise_mean: tuple[float, ...] | None = None
    """mean of the noise of kinematics and columns, that of the data"""
    noise_width: tuple[float, ...] | None = None
    """its width, a fifth of that of the data"""
    label_drop: float = 0.0
    """probability that a training jet's type is hidden, for classifier-free guidance"""

    def __post_init__(self) -> None:
        for name in ("layers", "dim", "latent", "time_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_conditions(self)
        check_columns(self)
        if self.noise_mean is None:
            raise ValueError("EPiC needs the mean and width of the noise of each column")

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the model, as ``PETConfig`` has them."""
        return ("generator",)

    @property
    def fields(self) -> tuple[str, ...]:
        """The optional fields of jets that it learns from."""
        return fields_of(self.columns)

    @property
    def few_steps(self) -> tuple[int, ...]:
        """None: there is no distillation of it."""
        return ()


SPREAD = 5.0  # widths of the noise that the data are wide, as published
EPIC_SIZES: dict[str, dict[str, Any]] = {
    "epic": {"layers": 20, "dim": 300, "latent": 16, "time_features": 32, "out_activation": True},
    "epic-small": {"layers": 6, "dim": 64, "latent": 16, "time_features": 6},
}


def epic_preset(size: str, **changes: Any) -> EPiCConfig:
    """The configuration of one of ``EPIC_SIZES`` for kinematics with noise of width 1, or changes.

    Raises:
        ValueError: for an unknown size or a change that cannot be.
    """
    if size not in EPIC_SIZES:
        raise unknown("size of EPiC", size, EPIC_SIZES)
    noise = {"noise_mean": (0.0,) * 4, "noise_width": (1.0,) * 4}
    return EPiCConfig(**{**EPIC_SIZES[size], **noise, **changes})


def with_conditions(
    state: Mapping[str, Tensor], before: EPiCConfig, after: EPiCConfig
) -> dict[str, Tensor]:
    """Weights for other types and conditions: those of the old ones go, new ones begin at zero.

    Args:
        state: of a model of ``before``.
        after: the model that they are for.
    """
    old, new = (c.condition_dim + (c.num_classes > 1) * c.num_classes for c in (before, after))
    result = dict(state)
    for name, weight in state.items():
        if not name.endswith((".global1.weight", ".global2.weight")):
            continue
        kept = weight[:, : weight.shape[1] - old]
        result[name] = torch.cat([kept, kept.new_zeros(len(kept), new)], 1)
        scale = name.replace(".weight", ".scale")
        shorter = kept.norm(dim=1, keepdim=True) / weight.norm(dim=1, keepdim=True)
        result[scale] = state[scale] * shorter  # the rest of the row stays as it was
    return result


class NormedLinear(Layer):
    """A linear layer with weight normalisation (arXiv 1602.07868) of inputs side by side."""

    def __init__(self, *inputs: int, out: int) -> None:
        super().__init__()
        self.first = inputs[0]
        start = nn.Linear(sum(inputs), out)
        self.weight = nn.Parameter(start.weight.detach().clone())
        self.scale = nn.Parameter(start.weight.detach().norm(dim=1, keepdim=True))
        self.bias = nn.Parameter(start.bias.detach().clone())

    def matrix(self) -> Tensor:
        """(out, inputs) the weights, whose rows are as long as ``scale`` says."""
        return self.weight * (self.scale / self.weight.norm(dim=1, keepdim=True))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs (M, inputs[i]) of the same rows to (M, out)."""
        joint = torch.cat(inputs, 1)
        return ops.linear(joint, self.matrix(), self.bias, precision=self.precision)

    def of_particles(self, rows: Tensor, packed: Packed, *sets: Tensor) -> Tensor:
        """Rows (T, inputs[0]) beside what their jets (B, inputs[i]) have in common, to (T, out)."""
        own, shared = self.matrix().split((self.first, self.weight.shape[1] - self.first), dim=1)
        joint = torch.cat(sets, 1)
        common = ops.linear(joint, shared.contiguous(), self.bias, precision=self.precision)
        mixed = ops.linear(rows, own.contiguous(), precision=self.precision)
        return mixed + spread(common, packed, rows.shape[0])


class EPiCStem(nn.Module):
    """Particles and vector of a jet from its columns."""

    def __init__(self, config: EPiCConfig, columns: int, condition: int) -> None:
        super().__init__()
        dim, time = config.dim, config.time_features
        self.local1 = NormedLinear(columns, time, out=dim)
        self.local2 = NormedLinear(dim, time, out=dim)
        self.global1 = NormedLinear(2 * dim, time, condition, out=dim)
        self.global2 = NormedLinear(dim, time, condition, out=config.latent)

    def forward(
        self, x: Tensor, packed: Packed, time: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(T, D) particles and (B, L) vector of columns (T, F); time (B, K), condition (B, C)."""
        x = leaky_relu(self.local1.of_particles(x, packed, time))
        x = leaky_relu(self.local2.of_particles(x, packed, time) + x)
        vector = leaky_relu(self.global1(pooled(x, packed), time, condition))
        return x, leaky_relu(self.global2(vector, time, condition))


class EPiCLayer(nn.Module):
    """The vector from the pooled particles, then the particles from the vector."""

    def __init__(self, config: EPiCConfig, condition: int) -> None:
        super().__init__()
        dim, latent, time = config.dim, config.latent, config.time_features
        self.global1 = NormedLinear(2 * dim, latent, time, condition, out=dim)
        self.global2 = NormedLinear(dim, time, condition, out=latent)
        self.local1 = NormedLinear(dim, latent, time, out=dim)
        self.local2 = NormedLinear(dim, time, out=dim)

    def forward(
        self, x: Tensor, vector: Tensor, packed: Packed, time: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(T, D) particles and (B, L) vector of the same; time (B, K), condition (B, C)."""
        hidden = leaky_relu(self.global1(pooled(x, packed), vector, time, condition))
        vector = leaky_relu(self.global2(hidden, time, condition) + vector)
        inner = leaky_relu(self.local1.of_particles(x, packed, vector, time))
        return leaky_relu(self.local2.of_particles(inner, packed, time) + x), vector


def pooled(x: Tensor, packed: Packed) -> Tensor:
    """(B, 2 D) mean and ``SUM_SCALE`` times the sum of each jet's rows; zeros of one without."""
    sums = segment_sums(x, packed)
    counts = packed.counts.clamp(min=1).to(x.dtype)
    return torch.cat([sums / counts[:, None], SUM_SCALE * sums], 1)


def time_features(time: Tensor, number: int) -> Tensor:
    """(B, number) float64 cos(pi t e^k) of times (B,).

    In float32, as in the paper's code, one rounding of t moves the phase of k = 16 by 2, so that
    the upper half of 32 features is no function of t but a hash of its bits.
    """
    frequency = torch.arange(number, dtype=torch.float64, device=time.device).exp() * math.pi
    return (time.double()[:, None] * frequency).cos()


class EPiC(nn.Module):
    """The field. It is equivariant under permutations of a jet's particles.

    Args:
        precision: what the products may be rounded to, see ``jetkern.model.layers.set_precision``.
    """

    noise_mean: Tensor
    noise_width: Tensor

    def __init__(self, config: EPiCConfig, *, precision: str = "ieee") -> None:
        super().__init__()
        self.config = config
        columns = 4 + len(config.columns)
        self.types = config.num_classes if config.num_classes > 1 else 0
        condition = self.types + config.condition_dim
        self.stem = EPiCStem(config, columns, condition)
        self.layers = nn.ModuleList(EPiCLayer(config, condition) for _ in range(config.layers))
        self.out = NormedLinear(config.dim, config.time_features, out=columns)
        for name in ("noise_mean", "noise_width"):
            value = torch.tensor(getattr(config, name))
            self.register_buffer(name, value, persistent=False)
        set_precision(self, precision)

    def forward(self, jets: Jets, time: Tensor) -> Tensor:
        """``velocity``."""
        return self.velocity(jets, time)

    def velocity(self, jets: Jets, time: Tensor) -> Tensor:
        """(T, 4 + C) velocity, noise minus data, of kinematics and columns.

        Args:
            jets: at ``time`` on the path, with ``columns`` if the model makes some, ``label`` if
                there are several types (-1 for none), ``condition`` if it has conditions.
            time: (B,), 1 for noise, 0 for data.

        Raises:
            ValueError: for jets that lack one of these.
        """
        values = joined(jets)
        if values.shape[1] != len(self.noise_mean):
            raise ValueError(
                f"this model makes {len(self.noise_mean)} columns, the jets have {values.shape[1]}"
            )
        packed, dtype = jets.packed, self.out.weight.dtype
        times = time_features(time, self.config.time_features).to(dtype)
        condition = self.condition(jets).to(dtype)
        width = self.noise_width.to(values.dtype)
        x = ((values - self.noise_mean) / width).to(dtype)
        x, vector = self.stem(x, packed, times, condition)
        for layer in self.layers:
            x, vector = layer(x, vector, packed, times, condition)
        x = self.out.of_particles(x, packed, times)
        if self.config.out_activation:
            x = leaky_relu(x)
        return x.to(values.dtype) * width

    def condition(self, jets: Jets) -> Tensor:
        """(B, types + C) the type, one of all, and the conditions."""
        parts = [jets.particles.new_zeros(len(jets), 0)]
        if self.types:
            if jets.label is None:
                raise ValueError("the generator needs the type of each jet as its label")
            kinds = torch.arange(self.types, device=jets.label.device)
            parts.append((jets.label[:, None] == kinds).to(parts[0].dtype))
        if self.config.condition_dim:
            if jets.condition is None:
                raise ValueError("this model is conditional, but the jets have no condition")
            scale = self.config.condition_scale or (1.0,) * self.config.condition_dim
            like = jets.condition
            parts.append(like / constant(scale, like.dtype, like.device))
        return torch.cat(parts, 1)
