"""Batches of one size."""

import numpy as np
import pytest
import torch

from jetkern import Jets
from jetkern.fillers import (
    Buffers,
    Capacity,
    buckets,
    filled,
    filler_counts,
    masked_capacities,
    sizes_of,
    training_capacity,
)
from jetkern.jets import offsets_from_counts, true_rows


def drawn(number, seed=0):
    return np.random.default_rng(seed).normal(41, 17, number).clip(1, 150).astype(np.int64)


def jets_of(counts):
    rows = torch.randn(int(counts.sum()), 4, generator=torch.Generator().manual_seed(0))
    offsets = offsets_from_counts(torch.from_numpy(counts))
    label = torch.arange(len(counts)) % 3
    return Jets(particles=rows, offsets=offsets, label=label, index=torch.arange(len(counts)))


def test_fillers_have_the_particles_and_the_pairs_that_are_asked_for():
    for particles, slope in ((300, 20), (2000, 40), (3333, 90), (5000, 120)):
        for odd in range(0, 40, 2):
            pairs = particles * slope + odd + (particles * (slope - 1)) % 2
            counts = filler_counts(512, particles, pairs)
            assert counts is not None
            assert sizes_of(counts) == (512, particles, pairs)
            assert counts.min() >= 0
            assert counts.max() <= 200


@pytest.mark.parametrize("asked", [(3, 10, 11), (3, -1, 1), (3, 0, 2), (2, 10, 1000), (0, 1, 1)])
def test_what_there_is_not_is_not_found(asked):
    assert filler_counts(*asked) is None
    assert filler_counts(3, 0, 0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("batch", [64, 1024])
def test_nearly_all_batches_fit_into_the_capacity_of_a_training(batch):
    capacity = training_capacity(drawn(batch), batch)
    found = []
    for seed in range(60):
        own = sizes_of(drawn(batch, seed + 1))
        counts = filler_counts(*(c - o for c, o in zip(capacity, own, strict=True)))
        found.append(counts is not None)
    assert np.mean(found) > 0.95
    assert capacity.particles < batch * 41 * (1.2 if batch > 100 else 1.7)


@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("batch", [64, 1024])
def test_nearly_all_batches_fit_into_both_capacities_of_a_training_with_masked_views(
    batch, fraction
):
    def visible(counts):
        return counts - (counts * fraction).astype(np.int64)

    whole, seen = masked_capacities(drawn(batch), visible(drawn(batch)), batch)
    found = []
    for seed in range(60):
        jets = jets_of(drawn(batch, seed + 1))
        shown = visible(jets.counts.numpy())
        full = filled(jets, whole, shown, seen)
        found.append(full is not None)
        if full is not None:
            assert (len(full), len(full.particles), full.num_pairs) == whole
            views = full.shown.packed.counts.numpy()
            assert (*sizes_of(views)[1:], full.shown.particles) == (*seen[1:], seen.particles)
            assert (views[:batch] == shown).all()
            assert (views <= full.counts.numpy()).all()
    assert np.mean(found) > 0.9
    assert whole.particles < batch * 41 * (1.2 if batch > 100 else 1.8)


def test_what_is_shown_stays_with_the_jets():
    counts = drawn(64)
    visible = counts // 2
    whole, seen = masked_capacities(counts, visible, 64)
    full = filled(jets_of(counts), whole, visible, seen)
    buffers = Buffers(full, torch.device("cpu"))
    other = drawn(64, 1)
    again = filled(jets_of(other), whole, other // 3, seen)
    if again is not None:
        buffers.take(again)
        full = again
    for jets in (buffers.jets(), full.to("cpu"), full.replace(label=None)):
        assert jets.shown.packed.offsets.equal(full.shown.packed.offsets)
        assert jets.shown.packed.num_pairs == seen.pairs
        keep = jets.rank_in_jet < jets.shown.packed.counts[jets.jet_of_particle]
        some = jets.show(true_rows(keep, jets.shown.particles), jets.shown)
        assert some.particles.equal(jets.particles[keep])
        assert some.offsets.equal(jets.keep_particles(keep).offsets)
        assert some.shown is None
    assert full.select(slice(3)).shown is None


def test_there_is_a_bucket_for_every_batch_and_few_in_all():
    taken = set()
    for seed in range(200):
        number = 1 + seed % 40
        own = sizes_of(drawn(number, seed))
        for capacity in buckets(own):
            if filler_counts(*(c - o for c, o in zip(capacity, own, strict=True))) is not None:
                taken.add(capacity)
                break
        else:
            raise AssertionError(own)
    assert len(taken) < 60


def test_filled_jets_are_the_jets_and_fillers():
    jets = jets_of(drawn(64))
    capacity = training_capacity(drawn(64, 1), 64)
    full = filled(jets, capacity)
    assert full is not None
    assert (len(full), len(full.particles), full.num_pairs) == capacity
    assert full.real == 64
    assert full.select(slice(64)).particles.equal(jets.particles)
    assert (full.label[64:] == -100).all()
    assert full.to("cpu").fillers == full.fillers == full.replace(label=None).fillers
    again = filled(jets_of(drawn(64, 2)), capacity)
    buffers = Buffers(full, torch.device("cpu"))
    buffers.take(again)
    assert buffers.jets().particles.equal(again.particles)
    assert buffers.jets().num_pairs == capacity.pairs
    assert filled(jets, Capacity(64, 10, 100)) is None
