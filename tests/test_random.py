import torch
from scipy import stats

from jetkern.random import normal, random_bits, uniform

COUNTER = torch.arange(200_000)


def test_distributions():
    assert stats.kstest(uniform(1, 2, COUNTER), "uniform").pvalue > 1e-3
    assert stats.kstest(normal(1, 2, COUNTER), "norm").pvalue > 1e-3
    u = uniform(3, 0, torch.arange(3_000_000))
    assert u.min() > 0
    assert u.max() < 1


def test_streams_seeds_and_neighbours_are_independent():
    draws = [normal(s, t, COUNTER) for s in (0, 1) for t in (0, 1)]
    draws.append(normal(0, 0, COUNTER, torch.tensor(1)))
    draws.append(draws[0].roll(1))
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.015  # 6.7 sigma at 200,000 draws


def test_a_number_depends_on_its_own_counters_only():
    whole = normal(5, 1, COUNTER[:, None], torch.arange(3))
    part = normal(5, 1, COUNTER[100:200, None], torch.arange(3))
    assert torch.equal(whole[100:200], part)


def test_bits_stay_what_they_are():
    """A resumed or repeated run of an old version must see the same noise."""
    assert random_bits(0, 0, torch.tensor([0, 1])).tolist() == [
        2558736989570252433,
        3400964856525257824,
    ]
