import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jetkern
from jetkern import Jets
from jetkern.jets import join_segments, last_rows, offsets_from_counts, unpack
from jetkern.packed import Packed

COUNTS = st.lists(st.integers(0, 9), max_size=8)


def make(counts, seed=0, **extra):
    generator = torch.Generator().manual_seed(seed)
    total, jets = sum(counts), len(counts)
    return Jets(
        particles=torch.randn(total, 4, generator=generator),
        offsets=offsets_from_counts(torch.tensor(counts, dtype=torch.int64)),
        pid=torch.randint(0, 9, (total,), generator=generator),
        label=torch.randint(0, 10, (jets,), generator=generator),
        index=torch.arange(jets),
        **extra,
    )


@settings(deadline=None, max_examples=50)
@given(COUNTS)
def test_padded_and_back(counts):
    jets = make(counts)
    particles, mask = jets.to_padded(12)
    pid, _ = unpack(jets.pid, jets.offsets, 12)
    back = Jets.from_padded(particles, mask, pid=pid, label=jets.label)
    assert torch.equal(back.particles, jets.particles)
    assert torch.equal(back.offsets, jets.offsets)
    assert torch.equal(back.pid, jets.pid)


@settings(deadline=None, max_examples=50)
@given(COUNTS, st.randoms())
def test_select_is_concat_of_single_jets(counts, random):
    jets = make(counts)
    order = list(range(len(counts))) * 2
    random.shuffle(order)
    chosen = jets.select(torch.tensor(order, dtype=torch.int64))
    assert chosen.index.tolist() == order
    for position, jet in enumerate(order):
        a, b = chosen.offsets[position], chosen.offsets[position + 1]
        c, d = jets.offsets[jet], jets.offsets[jet + 1]
        assert torch.equal(chosen.particles[a:b], jets.particles[c:d])
    if order:
        again = Jets.concat([jets.select(slice(j, j + 1)) for j in order])
        assert torch.equal(again.particles, chosen.particles)
        assert torch.equal(again.offsets, chosen.offsets)


@settings(deadline=None, max_examples=50)
@given(COUNTS)
def test_keep_particles(counts):
    jets = make(counts)
    keep = jets.pid % 2 == 0
    kept = jets.keep_particles(keep)
    for jet in range(len(jets)):
        own = slice(int(jets.offsets[jet]), int(jets.offsets[jet + 1]))
        rows = kept.particles[kept.offsets[jet] : kept.offsets[jet + 1]]
        assert torch.equal(rows, jets.particles[own][keep[own]])


def test_what_the_host_knows_of_the_sizes_goes_along():
    jets = make([2, 0, 3]).to("cpu")
    assert jets.packed.known_counts.tolist() == [2, 0, 3]
    keep = torch.tensor([True, False, True, True, False])
    kept = jets.keep_particles(keep, jets.packed.known_counts - [1, 0, 1])
    assert torch.equal(kept.particles, jets.keep_particles(keep).particles)
    both = Jets.concat([jets, kept]).packed
    assert both.known_counts.tolist() == both.counts.tolist() == [2, 0, 3, 1, 0, 2]
    assert (both.known_pairs, both.known_longest) == (18, 3)
    assert jets.select(slice(1, 3)).packed.known_counts.tolist() == [0, 3]


def test_ranks_and_owners():
    jets = make([2, 0, 3])
    assert jets.jet_of_particle.tolist() == [0, 0, 2, 2, 2]
    assert jets.rank_in_jet.tolist() == [0, 1, 0, 1, 2]


def test_number_of_pairs_goes_along_without_being_counted_again():
    jets = make([2, 0, 3])
    assert jets.num_pairs == 13
    counted = jets.to("cpu")
    for other, want in (
        (counted, 13),
        (counted.replace(particles=jets.particles + 1), 13),
        (Jets.concat([counted, counted]), 26),
    ):
        assert other.packed.known_pairs == want
    changed = counted.replace(offsets=torch.tensor([0, 1, 1, 5]))
    assert changed.num_pairs == 17
    assert counted.select(slice(0, 1)).num_pairs == 4


def test_join_segments_and_last_rows():
    a = torch.arange(3.0)[:, None], torch.tensor([0, 1, 1, 3])
    b = torch.arange(10.0, 14.0)[:, None], torch.tensor([0, 0, 2, 4])
    rows, offsets = join_segments([a, b])
    assert rows.flatten().tolist() == [0, 10, 11, 1, 2, 12, 13]
    assert offsets.tolist() == [0, 1, 3, 7]
    assert rows[last_rows(offsets, b[1], 4)].flatten().tolist() == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"particles": torch.zeros(5, 3)}, r"particles must be \(T, 4\)"),
        ({"offsets": torch.zeros(4)}, "offsets must be .* int64"),
        ({"pid": torch.zeros(4)}, "pid has 4 rows, expected 5"),
        ({"label": torch.zeros(2)}, "label has 2 rows, expected 3"),
        ({"tracks": torch.zeros(5, 3)}, r"tracks must be \(T, 4\).*got \(5, 3\)"),
        ({"tracks": torch.zeros(5)}, r"tracks must be \(T, 4\).*got \(5,\)"),
        ({"pid": torch.zeros(5)}, r"pid must be \(T,\) integers, got \(5,\) torch.float32"),
        ({"pid": torch.zeros(5, 1).long()}, r"pid must be \(T,\) integers, got \(5, 1\)"),
        ({"pid": torch.tensor([0, 8, 8, 211, 1])}, "0 to 8, got 211 in jet 2: .*from_pdg"),
        ({"pid": torch.tensor([-11, 8, 8, 8, 1])}, "0 to 8, got -11 in jet 0: .*from_pdg"),
    ],
)
def test_rejects_wrong_shapes(change, message):
    with pytest.raises(ValueError, match=message):
        make([2, 0, 3]).replace(**change)


def test_refuses_to_pad_too_short_or_to_mix_fields():
    with pytest.raises(ValueError, match="a jet has 3 particles, more than the padded length 2"):
        make([3]).to_padded(2)
    with pytest.raises(ValueError, match="pid is present in some of the batches only"):
        Jets.concat([make([1]), make([1]).replace(pid=None)])
    with pytest.raises(ValueError, match="mask must be bool"):
        Jets.from_padded(torch.zeros(1, 2, 4), torch.ones(1, 2))


@pytest.mark.parametrize(
    "offsets", [[0, 3, 2, 5], [1, 2, 2, 5], [0, 2, 2, 6], [0, 2, 2, 4], [-1, 2, 2, 5]]
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_offsets_given_from_outside_rise_from_zero_to_the_number_of_rows(offsets, dtype):
    with pytest.raises(ValueError, match="offsets must rise from 0"):
        make([2, 0, 3]).replace(offsets=torch.tensor(offsets, dtype=dtype))
    if offsets[:2] != [0, 2]:
        with pytest.raises(ValueError, match="offsets must rise from 0"):
            Packed(torch.tensor(offsets, dtype=dtype))


def test_a_layout_is_made_once_and_goes_along():
    jets = make([2, 0, 3])
    assert jets.packed.pair_ends.tolist() == [4, 4, 13]
    assert jets.packed.pair_offsets.tolist() == [0, 4, 4, 13]
    assert jets.packed.pair_ends is jets.packed.pair_ends
    assert (jets.packed.num_pairs, jets.packed.longest, len(jets.packed)) == (13, 3, 3)
    assert jets.replace(particles=jets.particles + 1).packed is jets.packed
    assert Jets(particles=jets.particles, offsets=jets.packed).offsets is jets.offsets
    small = jets.replace(offsets=jets.offsets.int())
    assert small.offsets.dtype == torch.int64
    none = Packed(torch.tensor([0]))
    assert (none.num_pairs, none.longest) == (0, 0)


def test_a_mask_or_a_field_of_another_shape_is_named():
    particles, mask = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask must have the \(B, N\) of particles, \(2, 3\)"):
        Jets.from_padded(particles, mask[:, :2])
    with pytest.raises(ValueError, match=r"tracks must have the \(B, N\)"):
        Jets.from_padded(particles, mask, tracks=torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"particles must be \(B, N, 4\)"):
        Jets.from_padded(particles[..., :3], mask)


def test_any_features_are_packed_and_unpacked():
    x = torch.randn(5, 7, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[2] = False
    rows, offsets = jetkern.pack(x, mask)
    assert rows.shape == (int(mask.sum()), 3, 2)
    assert offsets.diff().equal(mask.sum(1))
    back, real = jetkern.unpack(rows, offsets, 7)
    assert real.sum(1).equal(mask.sum(1))
    assert back[real].equal(rows)
    assert (back[~real] == 0).all()
    (gradient,) = torch.autograd.grad(back.square().sum(), x)
    torch.testing.assert_close(gradient, 2 * x * mask[..., None, None])
    codes, _ = jetkern.pack(torch.arange(6).view(2, 3), torch.tensor([[True] * 3, [False] * 3]))
    assert codes.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="mask must be bool"):
        jetkern.pack(x, mask.float())
    with pytest.raises(ValueError, match=r"mask must have the \(B, N\)"):
        jetkern.pack(x, mask[:, :3])


def test_what_inference_keeps_serves_training():
    jets = make([3, 0, 2])
    with torch.inference_mode():
        owner = jets.jet_of_particle
    assert jets.jet_of_particle is owner  # found once for a layout
    weights = torch.ones(3, requires_grad=True)
    weights[jets.jet_of_particle].sum().backward()
    assert weights.grad.tolist() == [3, 0, 2]
