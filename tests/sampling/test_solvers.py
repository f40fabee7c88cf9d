"""Solvers against closed forms and torchdiffeq."""

import json

import numpy as np
import pytest
import torch
import torchdiffeq

from jetkern.sampling import SOLVERS, Scheme, integrate, scheme, uniform_grid, with_evaluations

ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 2}
RAGGED = np.array([1.0, 0.93, 0.7, 0.66, 0.2, 0.05, 0.0])


def run(velocity, start, table):
    """``velocity(t, x)``, as torchdiffeq calls it."""
    return integrate(lambda x, k: velocity(table.times[k], x), start, table)


def oscillation(t, x):
    """x' = cos(3 t) x has the solution x(0) exp(sin(3 t) / 3)."""
    return np.cos(3 * t) * x


@pytest.mark.parametrize("solver", SOLVERS)
def test_observed_order_is_the_stated_one(solver):
    start = torch.tensor([[0.7]], dtype=torch.float64)
    exact = 0.7 * np.exp((np.sin(0.6) - np.sin(3.0)) / 3)
    errors = [
        abs(float(run(oscillation, start, scheme(solver, uniform_grid(n, 1.0, 0.2)))) - exact)
        for n in (64, 128)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(ORDER[solver], abs=0.15)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize(
    "grid", [uniform_grid(9), RAGGED, RAGGED[::-1]], ids=["even", "down", "up"]
)
def test_agrees_with_torchdiffeq(solver, grid):
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 4, dtype=torch.float64, generator=draw)
    start = torch.randn(11, 4, dtype=torch.float64, generator=draw)

    def velocity(t, x):
        return torch.sin(x @ matrix) * (1 + t) + t * x

    method = {"heun": "heun2"}.get(solver, solver)
    expected = torchdiffeq.odeint(velocity, start, torch.tensor(grid.copy()), method=method)[-1]
    torch.testing.assert_close(
        run(velocity, start, scheme(solver, grid)), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_gaussian_field_gives_the_known_distribution(solver):
    """Data N(2, 0.3): on the straight path the flow maps noise e to 2 + 0.3 e."""
    mean, width = 2.0, 0.3
    noise = torch.linspace(-4, 4, 101, dtype=torch.float64)[:, None]

    def velocity(t, z):
        variance = (1 - t) ** 2 * width**2 + t**2
        return (t - (1 - t) * width**2) / variance * (z - (1 - t) * mean) - mean

    result = run(velocity, noise, scheme(solver, uniform_grid(256)))
    tolerance = 0.015 if solver == "euler" else 1e-3
    torch.testing.assert_close(result, mean + width * noise, rtol=0, atol=tolerance)


def test_two_step_adams_bashforth_on_equal_steps_has_its_textbook_weights():
    table = with_evaluations("ab2", 4)
    h = -0.25
    increments = np.diff(table.weights[:, :, 0], axis=0, prepend=0.0)
    np.testing.assert_allclose(increments[0], [h, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(increments[2], [0, -h / 2, 3 * h / 2, 0], atol=1e-15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_are_counted(solver):
    table = with_evaluations(solver, 12)
    calls = []
    integrate(lambda x, k: calls.append(k) or x, torch.zeros(1, 4), table)
    assert calls == list(range(12)) == list(range(table.evaluations))


def test_weights_may_differ_by_feature():
    weights = np.zeros((2, 2, 4))
    weights[0, 0] = [1, 2, 3, 4]
    weights[1] = weights[0] + 0.5
    table = Scheme(np.array([1.0, 0.5]), np.tril(weights.transpose(2, 0, 1)).transpose(1, 2, 0))
    result = integrate(lambda x, k: torch.full_like(x, k + 1.0), torch.zeros(3, 4), table)
    expected = torch.tensor([1.0, 2, 3, 4]) + 0.5 + 0.5 * 2
    torch.testing.assert_close(result, expected.expand(3, 4))


def test_a_scheme_survives_json_to_the_last_bit():
    table = scheme("rk4", RAGGED)
    back = Scheme.from_json(json.loads(json.dumps(table.as_json())))
    assert back.name == "rk4"
    assert np.array_equal(back.times, table.times)
    assert np.array_equal(back.weights, table.weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scheme("leapfrog", [1, 0]), "unknown solver 'leapfrog'"),
        (lambda: scheme("euler", [1.0]), "two or more"),
        (lambda: scheme("euler", [1.0, np.nan]), "two or more finite"),
        (lambda: scheme("euler", [1.0, 0.5, 0.5]), "strictly"),
        (lambda: uniform_grid(0), "at least one step"),
        (lambda: with_evaluations("rk4", 6), "no multiple"),
        (lambda: Scheme(np.ones(2), np.ones((2, 2))), "before they are known"),
        (lambda: Scheme(np.ones(2), np.ones((3, 3))), "needs times"),
        (lambda: Scheme(np.ones(1), np.full((1, 1), np.inf)), "not finite"),
        (lambda: Scheme.from_json({"times": [1.0]}), "not a sampling scheme"),
    ],
)
def test_what_is_no_scheme_says_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()
