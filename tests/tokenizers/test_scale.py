import numpy as np
import pytest
import torch
from scipy.stats import norm

from jetkern.tokenizers import QuantileNormal


def fitted(*columns: np.ndarray) -> QuantileNormal:
    return QuantileNormal.fit(columns)


def test_any_distribution_becomes_a_standard_normal_and_comes_back() -> None:
    draw = np.random.default_rng(0)
    columns = draw.exponential(size=20_000), draw.standard_t(2, 20_000), draw.uniform(-1, 1, 20_000)
    scale = fitted(*columns)
    x = torch.from_numpy(np.stack(columns, 1)).float()
    z = scale(x)
    assert z.dtype == torch.float32
    assert (z.mean(0).abs() < 0.02).all()
    assert ((z.std(0) - 1).abs() < 0.02).all()
    inside = (z.abs() < 2.8).all(1)
    torch.testing.assert_close(scale.inverse(z)[inside], x[inside], atol=2e-5, rtol=2e-5)


def test_the_scale_saturates_and_knows_its_knots() -> None:
    values = np.linspace(0, 499, 500)
    scale = fitted(values)
    z = scale(torch.tensor([[-5.0], [0.0], [499.0], [1e9], [249.5], [100.0], [100.5]]))[:, 0]
    edge = float(norm.isf(1e-7))
    assert edge == pytest.approx(5.199, abs=1e-3)
    want = [-edge, -edge, edge, edge, 0.0, norm.ppf(100 / 499), norm.ppf(100.5 / 499)]
    np.testing.assert_allclose(z.numpy(), want, rtol=1e-6, atol=1e-7)


def test_a_value_that_many_have_is_the_middle_of_its_step() -> None:
    values = np.concatenate([np.full(300, 2.0), np.linspace(3, 4, 200)])
    z = fitted(values)(torch.tensor([[2.0]]))
    steps = (np.quantile(values, np.linspace(0, 1, 500)) == 2.0).sum() - 1
    assert z.item() == pytest.approx(norm.ppf(steps / 499 / 2), abs=1e-6)
    constant = fitted(np.full(10, 7.0))
    assert constant(torch.tensor([[6.0], [7.0], [8.0]]))[:, 0].tolist() == pytest.approx(
        [-5.199, 0.0, 5.199], abs=1e-3
    )


def test_no_particles_and_bad_input() -> None:
    scale = fitted(np.arange(10.0), np.arange(5.0))
    assert scale(torch.zeros(0, 2)).shape == (0, 2)
    assert scale.inverse(torch.zeros(0, 2)).shape == (0, 2)
    with pytest.raises(ValueError, match="feature 1 has no values"):
        fitted(np.arange(3.0), np.array([]))
    with pytest.raises(ValueError, match="must be finite and rise"):
        QuantileNormal(torch.zeros(1, 500).index_fill(1, torch.tensor([3]), 1.0))
    with pytest.raises(ValueError, match=r"quantiles must be \(features, 500\)"):
        QuantileNormal(torch.zeros(1, 10))
