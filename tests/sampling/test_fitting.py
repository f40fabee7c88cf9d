"""Schemes made for one velocity field."""

from itertools import combinations

import numpy as np
import pytest
import torch

from jetkern.sampling import fit, noise_jets, sample, scheme, trajectory, with_evaluations
from jetkern.sampling.fitting import best_grid, fine_grid, fit_weights
from jetkern.sampling.solvers import integrate


def bend(jets, time):
    """Curves most near t = 0.2."""
    t = time[jets.jet_of_particle][:, None]
    centre = torch.tensor([0.1, -0.1, 2.0, 3.0], dtype=jets.particles.dtype)
    return (jets.particles - centre) * 4 * torch.exp(-20 * (t - 0.2) ** 2)


def start(seed):
    return noise_jets(torch.arange(1, 21), seed=seed, dtype=torch.float64)


@pytest.fixture(scope="module")
def reference():
    return trajectory(bend, start(0), fine_grid(32))


def error_on_other_noise(table):
    exact = sample(bend, start(1), scheme("rk4", fine_grid(64)))
    return float((sample(bend, start(1), table).particles - exact.particles).square().mean().sqrt())


def test_the_reference_is_fine(reference):
    table = scheme("midpoint", reference.nodes)
    end = sample(bend, start(0), table).particles
    torch.testing.assert_close(reference.positions[-1], end)
    here = bend(start(0).replace(particles=end), torch.zeros(20, dtype=torch.float64))
    torch.testing.assert_close(reference.velocities[-1], here)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_no_other_grid_has_a_smaller_sum_of_local_errors(steps):
    """Against all grids, each error computed from the trajectory itself."""
    fine = trajectory(bend, start(0), fine_grid(9))
    scale = fine.positions[-1].std(0)

    def local(a, b, c):
        nodes = fine.nodes
        grid = nodes[[b, c]] if a is None else nodes[[a, b, c]]
        velocities = fine.velocities[[b] if a is None else [a, b]]
        # Start the scheme so that it is at the reference's position in node b.
        table = scheme("ab2", grid)
        last = np.diff(table.weights[:, :, 0], axis=0, prepend=0.0)[-1]
        moved = sum(w * v for w, v in zip(last, velocities, strict=True))
        wrong = fine.positions[b] + moved - fine.positions[c]
        return float((wrong / scale).square().sum().sqrt())

    totals = {}
    for inner in combinations(range(1, 9), steps - 1):
        places = [0, *inner, 9]
        totals[tuple(places)] = sum(
            local(places[i - 1] if i else None, places[i], places[i + 1]) for i in range(steps)
        )
    expected = fine.nodes[list(min(totals, key=totals.get))]
    np.testing.assert_array_equal(best_grid(fine, steps), expected)


@pytest.mark.parametrize("evaluations", [4, 6, 8])
def test_a_fitted_scheme_beats_the_solvers_on_noise_it_has_not_seen(reference, evaluations):
    fitted = error_on_other_noise(fit(bend, reference, evaluations))
    for solver in ("euler", "midpoint", "heun", "ab2"):
        assert fitted < 0.7 * error_on_other_noise(with_evaluations(solver, evaluations))


def test_as_many_steps_as_the_reference_has_are_its_grid(reference):
    np.testing.assert_array_equal(best_grid(reference, 32), reference.nodes)


@pytest.mark.parametrize("steps", [0, 33])
def test_grids_that_the_reference_does_not_have(reference, steps):
    with pytest.raises(ValueError, match="1 to 32 steps"):
        best_grid(reference, steps)


def test_without_freedom_the_fit_is_adams_bashforth(reference):
    grid = best_grid(reference, 5)
    table = fit_weights(bend, reference, grid, ridge=1e12)
    begin = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = [
        integrate(lambda x, k: torch.sin(x) * (k + 1), begin, t)
        for t in (table, scheme("ab2", grid))
    ]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
