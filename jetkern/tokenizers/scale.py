"""Features on a normal scale: each one's quantiles become those of a standard normal.

The preprocessing of MPMv2 (arXiv 2409.12589), as scikit-learn's ``QuantileTransformer`` defines it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

QUANTILES = 500
EDGE = 1e-7  # of a probability: the scale saturates at 5.199


class QuantileNormal(nn.Module):
    """Features to and from a standard normal scale, one by one.

    Between neighbouring quantiles the distribution function is a straight line; at a value that
    takes up several quantiles it is the middle of its step. Both ways in float64, so that a value
    has the same scale on every device.

    Args:
        quantiles: (F, 500) float, rising in each row.

    Raises:
        ValueError: for another shape, values that are not finite or do not rise.
    """

    quantiles: Tensor

    def __init__(self, quantiles: Tensor) -> None:
        super().__init__()
        if quantiles.ndim != 2 or quantiles.shape[1] != QUANTILES:
            raise ValueError(
                f"quantiles must be (features, {QUANTILES}), got {tuple(quantiles.shape)}"
            )
        wrong = ~quantiles.isfinite().all() | (quantiles.diff(dim=1) < 0).any()
        if not quantiles.is_meta and wrong:
            raise ValueError("quantiles must be finite and rise")
        self.register_buffer("quantiles", quantiles.float().contiguous())

    @classmethod
    def blank(cls, features: int) -> QuantileNormal:
        """A scale whose quantiles will be read from a checkpoint."""
        return cls(torch.linspace(-1, 1, QUANTILES).repeat(features, 1))

    @classmethod
    def fit(cls, columns: Sequence[NDArray[np.floating]]) -> QuantileNormal:
        """The scale on which these values are normal.

        Args:
            columns: values of each feature, as many as there are.

        Raises:
            ValueError: for a feature without a value, or values that are not finite.
        """
        at = np.linspace(0, 1, QUANTILES)
        rows = []
        for number, values in enumerate(columns):
            if not len(values) or not np.isfinite(values).all():
                raise ValueError(f"feature {number} has no values, or some that are not finite")
            rows.append(np.maximum.accumulate(np.quantile(np.asarray(values, np.float64), at)))
        return cls(torch.from_numpy(np.stack(rows)))

    def forward(self, x: Tensor) -> Tensor:
        """(T, F) values to (T, F) float32 on the normal scale, within 5.2 of 0."""
        grid, values = self.quantiles.double(), x.double().T.contiguous()
        share = (self._below(grid, values, False) + self._below(grid, values, True)) / 2
        return torch.special.ndtri(share.clamp(EDGE, 1 - EDGE)).T.float()

    def inverse(self, z: Tensor) -> Tensor:
        """(T, F) on the normal scale to (T, F) float32 values.

        Undoes ``forward`` where the distribution function rises: not beyond the first and last
        quantile.
        """
        grid = self.quantiles.double()
        place = torch.special.ndtr(z.double().T) * (QUANTILES - 1)
        low = place.floor().clamp(0, QUANTILES - 2).long()
        start, end = grid.gather(1, low), grid.gather(1, low + 1)
        return (start + (place - low) * (end - start)).T.float()

    @staticmethod
    def _below(grid: Tensor, values: Tensor, right: bool) -> Tensor:
        """(F, T) share below a value, or with ``right`` below or equal to it."""
        at = torch.searchsorted(grid, values, right=right).clamp(1, QUANTILES - 1)
        low, high = grid.gather(1, at - 1), grid.gather(1, at)
        step = high - low
        inside = ((values - low) / step.where(step > 0, 1)).clamp(0, 1)
        flat = values >= high if right else values > high
        inside = torch.where(step > 0, inside, flat.double())
        return (at - 1 + inside) / (QUANTILES - 1)
