"""Where the reference code is wrong or unstable: what it does, and what ours does.

Each test writes down the reference's rule (arXiv 2606.14870's code, OmniLearned) in a line or two
and shows the fault, then shows that ours does not have it.
"""

import math

import pytest
import torch

from jetkern import Jets, ops
from jetkern.model.pet import PET
from jetkern.model.presets import model_preset


def small_model(**changes):
    torch.manual_seed(0)
    config = model_preset("micro", ["classifier"], layers=1, use_pid=False, use_tracks=False)
    return PET(config).double().eval()


def some_jets(counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    particles = torch.randn(int(offsets[-1]), 4, generator=generator, dtype=torch.float64)
    return Jets(particles=particles * 0.3 + torch.tensor([0, 0, 2, 2.5]), offsets=offsets)


def test_a_particle_of_exactly_1_gev_is_a_particle():
    jets = some_jets([20])
    soft = jets.particles.clone()
    soft[-1, 2] = math.log(1.0)
    # The reference takes ln pT == 0 for padding: one of 20 particles vanishes.
    assert (soft[:, 2] != 0).sum() == 19
    # Ours is continuous there: 1 GeV differs from 1.000001 GeV by a millionth, not by a particle.
    near = soft.clone()
    near[-1, 2] = 1e-6
    gone = Jets(particles=soft[:-1], offsets=torch.tensor([0, 19]))
    model = small_model()
    here, there, without = (
        model.classify(j)
        for j in (jets.replace(particles=soft), jets.replace(particles=near), gone)
    )
    assert (here - there).abs().max() < 1e-5
    assert (here - without).abs().max() > 1e-3


def test_collinear_pairs_do_not_cancel():
    angle = 10.0 ** torch.arange(-6, 0, 0.25, dtype=torch.float64)
    first = torch.stack([angle, 0.7 * angle, angle * 0 + 2, angle * 0 + 3], 1)
    second = torch.zeros_like(first)
    exact = ops.pair_features(first, second)

    def reference(a, b):
        """ln of 2 pT pT (cosh delta eta - cos delta phi), 0 where that is not positive."""
        d = a - b
        m2 = 2 * a[:, 2].exp() * b[:, 2].exp() * (d[:, 0].cosh() - d[:, 1].cos())
        return torch.where(m2 > 0, m2, 1.0).log()

    theirs = (reference(first.float(), second.float()) - exact[:, 0]).abs().max()
    ours = (ops.pair_features(first.float(), second.float()) - exact).abs().max()
    assert theirs > 1.0  # whole units of ln m^2: it falls to ln 1 below delta R of about 3e-4
    assert ours < 1e-5


@pytest.mark.parametrize("particles", [0, 1, 2, 5, 15, 16])
def test_jets_with_fewer_than_k_plus_1_particles(particles):
    k = model_preset("micro").neighbours
    jets = some_jets([particles])
    if particles < k + 1:
        # The reference asks topk for K + 1 of too few columns and stops.
        with pytest.raises(RuntimeError, match="out of range"):
            torch.zeros(1, particles, particles).topk(k + 1, dim=-1)
    logits = small_model().classify(jets)
    assert logits.isfinite().all()
    # Beside a longer jet the short one gives the same: nothing depends on its company.
    both = Jets.concat([jets, some_jets([40], seed=1)])
    torch.testing.assert_close(small_model().classify(both)[:1], logits)


def test_nearest_neighbours_never_include_the_particle_itself():
    # The reference drops the first of K + 1 columns, which is not the particle itself if another
    # lies at the same place.
    points = torch.zeros(6, 2, dtype=torch.float64)
    distance = (points[:, None] - points[None]).square().sum(-1)
    first = distance.topk(4, largest=False).indices[:, 0]
    assert (first != torch.arange(6)).any()
    neighbours = ops.knn(points, torch.tensor([0, 6]), 3)
    assert (neighbours != torch.arange(6)[:, None]).all()
    assert neighbours[0].tolist() == [1, 2, 3]
    assert neighbours[5].tolist() == [0, 1, 2]
