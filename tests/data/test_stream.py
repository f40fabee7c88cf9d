"""The order is a permutation, the same for every world size, and resumes anywhere."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetkern.data import ShardError, Shards, Stream, select_classes
from jetkern.data.blocks import BlockReader
from jetkern.jets import Jets
from tests.factories import write_shards


def number(jets):
    """The number of each jet in file order, see ``write_shards``."""
    return jets.condition[:, 1].long()


def take(stream, batches):
    iterator = iter(stream)
    result = [next(iterator) for _ in range(batches)]
    iterator.close()
    return result


def same(a: Jets, b: Jets):
    for name in ("particles", "offsets", "pid", "tracks", "label", "condition", "index"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_in_file_order_every_jet_comes_once_as_it_was_written(shards):
    batches = list(Stream(shards, batch_size=64, shuffle=False, epochs=1))
    assert [len(b) for b in batches[:-1]] == [64] * (len(batches) - 1)
    jets = Jets.concat(batches)
    assert torch.equal(number(jets), torch.arange(shards.num_jets))
    assert torch.equal(jets.index, torch.arange(shards.num_jets))
    owner = jets.jet_of_particle.to(torch.float32)
    assert torch.equal(jets.particles[:, 3], owner)
    assert torch.equal(jets.counts, torch.from_numpy(shards.multiplicity().astype(np.int64)))
    assert torch.equal(torch.bincount(jets.label), torch.tensor(shards.counts))


def test_dtypes_are_those_of_the_packed_batch(shards):
    jets = next(iter(Stream(shards, batch_size=8)))
    assert jets.particles.dtype == jets.tracks.dtype == jets.condition.dtype == torch.float32
    assert jets.pid.dtype == jets.label.dtype == jets.offsets.dtype == torch.int64


def test_jets_keep_their_particles_through_the_shuffle(shards):
    plain = Jets.concat(list(Stream(shards, batch_size=500, shuffle=False, epochs=1)))
    for jets in Stream(shards, batch_size=100, epochs=1, seed=3):
        expected = plain.select(number(jets))
        same(jets, expected.replace(index=jets.index))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    batch=st.sampled_from([12, 24, 240, 1260]),
    lanes=st.sampled_from([1, 4, 7, 64]),
    subset=st.sampled_from([None, 90, 200, 900]),
)
def test_union_over_ranks_does_not_depend_on_the_world_size(shards, seed, batch, lanes, subset):
    options = {
        "batch_size": batch,
        "seed": seed,
        "lanes": lanes,
        "num_jets": subset,
        "prefetch": 0,
    }
    steps = 4
    one = take(Stream(shards, **options), steps)
    for world in (2, 3, 4):
        ranks = [
            take(Stream(shards, rank=r, world_size=world, **options), steps) for r in range(world)
        ]
        for step in range(steps):
            parts = [r[step] for r in ranks]
            assert {len(p) for p in parts} == {batch // world}
            merged = Jets.concat(parts)
            same(merged.select(merged.index.argsort()), one[step])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    batch=st.integers(1, 700),
    lanes=st.sampled_from([1, 3, 64, 1000]),
    subset=st.none() | st.integers(1, 1000),
)
def test_every_epoch_is_a_permutation(shards, seed, batch, lanes, subset):
    stream = Stream(
        shards, batch_size=batch, seed=seed, lanes=lanes, num_jets=subset, epochs=2, prefetch=0
    )
    n = stream.num_jets
    jets = torch.cat([number(b) for b in stream])
    first, second = jets[:n].sort().values, jets[n:].sort().values
    assert len(jets) == 2 * n
    assert len(first.unique()) == n
    assert torch.equal(first, second)
    if subset is None:
        assert torch.equal(first, torch.arange(n))


@settings(max_examples=25, deadline=None)
@given(before=st.integers(0, 60), batch=st.sampled_from([1, 10, 64, 300]), world=st.integers(1, 2))
def test_state_through_json_gives_the_same_suffix(shards, before, batch, world):
    def stream():
        return Stream(shards, batch_size=batch * world, rank=world - 1, world_size=world, seed=1)

    original = stream()
    iterator = iter(original)
    for _ in range(before):
        next(iterator)
    state = json.loads(json.dumps(original.state()))
    suffix = [next(iterator) for _ in range(4)]
    iterator.close()
    restored = stream()
    restored.load_state(state)
    for a, b in zip(suffix, take(restored, 4), strict=True):
        same(a, b)


def test_stopping_and_iterating_again_continues(shards):
    whole = take(Stream(shards, batch_size=50), 6)
    stream = Stream(shards, batch_size=50)
    for a, b in zip(whole, take(stream, 2) + take(stream, 4), strict=True):
        same(a, b)


def test_a_state_moves_to_another_world_size(shards):
    stream = Stream(shards, batch_size=48)
    take(stream, 5)
    expected = take(stream, 1)[0]
    stream.seek(5 * 48)
    parts = []
    for rank in range(3):
        other = Stream(shards, batch_size=48, rank=rank, world_size=3)
        other.load_state(stream.state())
        parts += take(other, 1)
    merged = Jets.concat(parts)
    same(merged.select(merged.index.argsort()), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed is 0, was 2"),
        ({"fingerprint": "x"}, "fingerprint"),
        ({"num_jets": 3}, "num_jets"),
        ({"position": -1}, "position"),
        ({"position": 1.5}, "position"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_state_of_another_order_is_refused(shards, change, message):
    stream = Stream(shards, batch_size=8)
    with pytest.raises(ValueError, match=message):
        stream.load_state({**stream.state(), **change})


def test_seeds_and_epochs_give_different_orders(shards):
    n = shards.num_jets
    orders = [
        number(take(Stream(shards, batch_size=n, seed=seed), 2)[epoch])
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert not torch.equal(a, b)
            assert (a == b).float().mean() < 0.02


def test_a_batch_mixes_many_blocks(shards):
    block = np.repeat(np.arange(len(shards.index)), shards.index["jets"])
    jets = next(iter(Stream(shards, batch_size=64)))
    assert len(np.unique(block[number(jets)])) > 20


def test_the_order_is_fixed_for_good(shards):
    # Checkpoints point into this order: a change of these numbers breaks every resumed run.
    jets = number(next(iter(Stream(shards, batch_size=8, seed=7, num_jets=400, lanes=4))))
    assert jets.tolist() == [927, 797, 967, 272, 893, 812, 977, 283]


def test_subsets_of_one_seed_are_nested_and_others_are_not(shards):
    def members(n, subset_seed=0, seed=0):
        stream = Stream(
            shards, batch_size=n, num_jets=n, subset_seed=subset_seed, seed=seed, epochs=1
        )
        return set(number(next(iter(stream))).tolist())

    assert members(50) < members(120) < members(500)
    assert members(120) == members(120, seed=5)
    assert members(120) != members(120, subset_seed=1)


def test_a_small_subset_reads_few_blocks(shards, monkeypatch):
    seen = []
    original = BlockReader.read
    monkeypatch.setattr(
        BlockReader,
        "read",
        lambda self, block, field, into: seen.append(block) or original(self, block, field, into),
    )
    take(Stream(shards, batch_size=16, num_jets=60), 20)
    assert len(set(seen)) <= 3
    assert len(seen) == len(set(seen)) * len(shards.fields)  # each array once, then kept


def test_ranks_read_each_block_about_once(shards):
    world = 2
    read = 0
    for rank in range(world):
        stream = Stream(shards, batch_size=16, rank=rank, world_size=world, epochs=1, lanes=2)
        blocks = set()
        for jets in stream:
            block = np.repeat(np.arange(len(shards.index)), shards.index["jets"])
            blocks |= set(block[number(jets)].tolist())
        read += len(blocks)
    assert read <= len(shards.index) + world


def test_fields_are_read_only_when_asked_for(shards):
    jets = next(iter(Stream(shards, batch_size=8, fields=("pid",))))
    assert jets.tracks is None
    assert jets.pid is not None
    assert jets.label is not None
    jets = next(iter(Stream(shards, batch_size=8, fields=())))
    assert jets.pid is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 7, "world_size": 2}, "multiple of world_size 2"),
        ({"batch_size": 8, "rank": 2, "world_size": 2}, "rank is 2"),
        ({"batch_size": 8, "num_jets": 10**9}, "num_jets"),
        ({"batch_size": 8, "num_jets": 0}, "num_jets"),
        ({"batch_size": 8, "epochs": 0}, "epochs"),
        ({"batch_size": 8, "lanes": 0}, "lanes"),
        ({"batch_size": 8, "fields": ("colour",)}, "no field colour"),
        ({}, "either batch_size or particles_per_batch"),
        pytest.param(
            {"batch_size": 8, "pin_memory": True},
            "needs a CUDA GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_arguments_out_of_range_are_refused(shards, arguments, message):
    with pytest.raises(ValueError, match=message):
        Stream(shards, **arguments)


def test_every_rank_has_the_same_number_of_steps(shards):
    steps = set()
    for rank in range(4):
        stream = Stream(shards, batch_size=64, rank=rank, world_size=4, shuffle=False, epochs=1)
        length = len(stream)
        steps.add((length, len(list(stream))))
    assert len(steps) == 1
    assert len(set(steps.pop())) == 1


def test_an_error_in_the_thread_reaches_the_loop(folder):
    shards = Shards(folder)
    shards.bytes = [n + 1 for n in shards.bytes]  # as if the files had been replaced
    stream = Stream(shards, batch_size=8)
    with pytest.raises(ShardError, match="bytes, expected"):
        next(iter(stream))


def test_resident_jets_are_the_same_jets(shards):
    for options in ({}, {"num_jets": 100}, {"shuffle": False}):
        read = take(Stream(shards, batch_size=48, **options), 40)
        resident = take(Stream(shards, batch_size=48, resident="cpu", **options), 40)
        for a, b in zip(read, resident, strict=True):
            same(a, b)


def test_threads_and_prefetching_change_nothing(shards, monkeypatch):
    plain = take(Stream(shards, batch_size=48, prefetch=0), 30)
    monkeypatch.setattr("jetkern.data.blocks._OPEN_FILES", 1)
    other = take(Stream(shards, batch_size=48, prefetch=5, threads=3), 30)
    for a, b in zip(plain, other, strict=True):
        same(a, b)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_batches_by_particles_fill_the_budget(shards, world):
    def stream(rank=0, world=1):
        return Stream(
            shards,
            particles_per_batch=2000,
            lanes=8,
            epochs=3,
            rank=rank,
            world_size=world,
        )

    one = list(stream())
    assert torch.equal(torch.cat([b.index for b in one]), torch.arange(3 * shards.num_jets))
    for batch, following in pairwise(one):
        assert len(batch) % 8 == 0
        assert len(batch.particles) <= 2000
        assert len(batch.particles) + int(following.counts[:8].sum()) > 2000
    ranks = [list(stream(r, world)) for r in range(world)]
    assert {len(r) for r in ranks} == {len(one)}
    for step, expected in enumerate(one):
        merged = Jets.concat([r[step] for r in ranks])
        same(merged.select(merged.index.argsort()), expected)


def test_batches_by_particles_resume_from_the_position(shards):
    def stream():
        return Stream(shards, particles_per_batch=2000, lanes=8)

    first = stream()
    take(first, 7)
    expected = take(first, 3)
    again = stream()
    again.seek(int(expected[0].index[0]))
    for a, b in zip(expected, take(again, 3), strict=True):
        same(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"particles_per_batch": 1199, "lanes": 8}, "at least lanes x 150 = 1200"),
        ({"particles_per_batch": 10**5, "lanes": 8, "world_size": 3}, "world_size 3 must divide"),
        ({"particles_per_batch": 10**5, "batch_size": 3}, "either"),
    ],
)
def test_a_particle_budget_out_of_range_is_refused(shards, arguments, message):
    with pytest.raises(ValueError, match=message):
        Stream(shards, **arguments)


def test_float16_shards_give_float32_batches(tmp_path, shards):
    half = Shards(write_shards(tmp_path, dtype="float16"))
    a = take(Stream(half, batch_size=100), 3)
    b = take(Stream(shards, batch_size=100), 3)
    for x, y in zip(a, b, strict=True):
        assert x.particles.dtype == torch.float32
        assert torch.equal(x.pid, y.pid)
        torch.testing.assert_close(x.particles, y.particles, rtol=2**-11, atol=1e-7)
        torch.testing.assert_close(x.tracks, y.tracks, rtol=2**-11, atol=1e-7)
    assert sum(half.bytes) < 0.7 * sum(shards.bytes)


def test_more_ranks_than_blocks_and_a_last_batch_smaller_than_the_world(shards):
    world = 64
    ranks = [
        list(Stream(shards, batch_size=64, num_jets=65, epochs=1, rank=r, world_size=world))
        for r in range(world)
    ]
    assert {len(r) for r in ranks} == {2}
    assert [len(r[1]) for r in ranks] == [1] + [0] * (world - 1)
    assert sorted(int(i) for r in ranks for b in r for i in b.index) == list(range(65))
    empty = ranks[1][1]
    assert empty.particles.shape == (0, 4)
    assert empty.condition.shape == (0, 2)


@pytest.mark.gpu
def test_pinned_batches(shards):
    for jets in take(Stream(shards, batch_size=8, pin_memory=True), 2):
        assert jets.particles.is_pinned()


@pytest.mark.gpu
def test_resident_on_a_gpu(shards):
    read = take(Stream(shards, batch_size=48), 10)
    resident = take(Stream(shards, batch_size=48, resident="cuda"), 10)
    for a, b in zip(read, resident, strict=True):
        assert b.particles.is_cuda
        same(a, b.to("cpu"))


def test_a_data_loader_gives_the_same_batches_or_says_what_to_do(shards):
    stream = Stream(shards, batch_size=64, epochs=1)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=0)
    found = torch.cat([jets.index for jets in loader])
    assert torch.equal(found, torch.arange(shards.num_jets))
    again = Stream(shards, batch_size=64, epochs=1)
    workers = torch.utils.data.DataLoader(again, batch_size=None, num_workers=1)
    with pytest.raises(ValueError, match="num_workers=0"):
        next(iter(workers))


@pytest.mark.parametrize("options", [{}, {"num_jets": 100}, {"resident": "cpu"}])
def test_chosen_classes_are_the_jets_of_these_renumbered(shards, options):
    chosen = select_classes(shards, ("c", "a"))
    whole = Jets.concat(list(Stream(shards, batch_size=500, shuffle=False, epochs=1)))
    stream = Stream(chosen, batch_size=48, epochs=2, seed=3, **options)
    jets = Jets.concat(list(stream))
    assert stream.num_jets == options.get("num_jets", chosen.num_jets)
    assert jets.index.equal(torch.arange(2 * stream.num_jets))
    expected = whole.select(number(jets))
    renumbered = torch.tensor([1, -1, 0])[expected.label]
    assert renumbered.min() == 0
    same(jets, expected.replace(index=jets.index, label=renumbered))
    for epoch in number(jets).split(stream.num_jets):
        assert len(epoch.unique()) == stream.num_jets
    assert chosen.counts == (shards.counts[2], shards.counts[0])
    assert chosen.num_particles == int(whole.counts[whole.label != 1].sum())


def test_chosen_classes_have_an_order_and_an_identity_of_their_own(shards, folder):
    chosen = select_classes(shards, ("a", "b"))
    assert select_classes(shards, ()) is shards
    prints = {select_classes(shards, c).fingerprint for c in (("a", "b"), ("b", "a"), ("a",))}
    assert len(prints | {shards.fingerprint}) == 4
    assert shards.num_jets == Shards(folder).num_jets
    state = Stream(chosen, batch_size=8).state()
    with pytest.raises(ValueError, match="fingerprint"):
        Stream(shards, batch_size=8).load_state(state)
    filled = Stream(chosen, particles_per_batch=2000, lanes=8, epochs=1)
    batches = list(filled)
    assert all(len(b.particles) <= 2000 for b in batches)
    assert sum(map(len, batches)) == chosen.num_jets


@pytest.mark.parametrize(
    ("classes", "message"), [(("a", "top"), "no class top, but a, b, c"), (("a", "a"), "one twice")]
)
def test_classes_that_cannot_be_chosen_are_named(shards, classes, message):
    with pytest.raises(ValueError, match=message):
        select_classes(shards, classes)
