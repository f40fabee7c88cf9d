import numpy as np
import pytest
import torch

from jetkern import Jets, ops
from jetkern.tokenizers import QuantileNormal, Tokenizer
from jetkern.tokenizers.bins import bin_centres
from jetkern.tokenizers.report import quality
from tests.ops.helpers import generator, random_particles

FEATURES = ("delta_eta", "ln_pt", "d0", "dz_error")


def some_jets(counts: list[int]) -> Jets:
    particles, offsets = random_particles(counts)
    tracks = torch.randn(len(particles), 4, generator=generator(1))
    tracks[::3] = 0.0  # neutral
    return Jets(particles=particles, offsets=offsets, tracks=tracks)


def fitted(jets: Jets, codes: int = 40) -> Tokenizer:
    blank = Tokenizer.blank(FEATURES, 0)
    values, known = blank.values(jets)
    scale = QuantileNormal.fit([v[k].numpy() for v, k in zip(values.T, known.T, strict=True)])
    whole = Tokenizer(FEATURES, scale, torch.zeros(0, 4))
    return Tokenizer(FEATURES, scale, whole.scaled(jets)[0][:codes])


def test_features_are_the_columns_of_that_name_and_neutral_particles_have_no_tracks() -> None:
    jets = some_jets([30, 0, 31])
    assert jets.tracks is not None
    values, known = Tokenizer.blank(FEATURES, 0).values(jets)
    want = [jets.particles[:, 0], jets.particles[:, 2], jets.tracks[:, 0], jets.tracks[:, 3]]
    assert torch.equal(values, torch.stack(want, 1))
    assert known[:, :2].all()
    assert not known[::3, 2:].any()
    assert known[1::3, 2:].all()
    scaled, _ = fitted(jets).scaled(jets)
    assert (scaled[::3, 2:] == 0).all()
    assert abs(float(scaled[known].mean())) < 0.2


def test_codes_of_particles_are_their_own_tokens_and_decode_to_them() -> None:
    jets = some_jets([30, 0, 31])
    tokenizer = fitted(jets)
    tokens = tokenizer.tokens(jets)
    assert tokens[:40].tolist() == list(range(40))
    again = tokenizer.reconstructed(jets, tokens)
    torch.testing.assert_close(again.particles[:40], jets.particles[:40], atol=1e-4, rtol=1e-4)
    assert torch.equal(again.particles[:, 1], jets.particles[:, 1])  # not among the features
    ratio = jets.particles[:, 3] - jets.particles[:, 2]
    torch.testing.assert_close(again.particles[:, 3] - again.particles[:, 2], ratio)
    found = quality(fitted(jets, 61), jets)
    assert found.dead == 0
    assert found.perplexity == pytest.approx(61)
    assert max(found.error.values()) < 1e-10
    assert abs(found.observables["pT"].width) < 1e-3


def test_bins_are_a_grid_whose_cells_are_used_alike() -> None:
    centres = bin_centres(130, 3)
    assert centres.shape == (125, 3)
    g = torch.Generator().manual_seed(0)
    points = torch.randn(20_000, 3, generator=g).clamp(-5.2, 5.2)
    edges = (centres[:5, 2][1:] + centres[:5, 2][:-1]) / 2
    places = torch.searchsorted(edges, points.T.contiguous())
    tokens = ops.nearest_code(points, centres)
    assert (tokens == places[0] * 25 + places[1] * 5 + places[2]).double().mean() > 0.9999
    for column in places:
        shares = column.bincount(minlength=5).double() / len(points)
        assert shares.amin() > 0.15
        assert shares.amax() < 0.25
    with pytest.raises(ValueError, match="7 codes are fewer than two bins in each of 3 features"):
        bin_centres(7, 3)


def test_the_fingerprint_is_that_of_features_scale_and_codes() -> None:
    jets = some_jets([61])
    one, same, other = fitted(jets), fitted(jets), fitted(jets, 39)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    copy = Tokenizer.blank(FEATURES, 40)
    assert copy.fingerprint != one.fingerprint
    copy.load_state_dict(one.state_dict())
    assert copy.fingerprint == one.fingerprint
    renamed = Tokenizer(("delta_eta", "ln_pt", "d0", "dz"), one.scale, one.codes)
    assert renamed.fingerprint != one.fingerprint


def test_bad_input_is_refused() -> None:
    jets = some_jets([61])
    with pytest.raises(ValueError, match="take some of delta_eta"):
        Tokenizer.blank(("ln_pt", "delta_eta"), 1)
    with pytest.raises(ValueError, match="no codes: it was fitted without"):
        fitted(jets, 0).tokens(jets)
    with pytest.raises(ValueError, match="reads tracks, but the jets have none"):
        fitted(jets).tokens(jets.replace(tracks=None))
    scale = QuantileNormal.fit([np.arange(3.0)])
    with pytest.raises(ValueError, match="a scale or codes of other widths"):
        Tokenizer(("ln_pt",), scale, torch.zeros(2, 2))
