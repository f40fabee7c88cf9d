"""Hits of showers as tokens: scale, codes, what is left of showers, and a fit by the command."""

import json

import pytest
import torch

from jetkern import Jets
from jetkern.cli import convert, tokenize
from jetkern.clouds import Clouds
from jetkern.model.vqvae import Shape, VQTokenizer
from jetkern.simulate.showers import CALORIMETERS, make_showers, simulate_showers
from jetkern.tokenizers import HITS, Tokenizer
from jetkern.tokenizers.report import quality
from jetkern.training.tokenize import load_tokenizer
from tests.factories import hit_codes


def some_showers(first: int = 0, number: int = 5) -> Clouds:
    showers = simulate_showers(CALORIMETERS["small"], range(first, first + number))
    return Clouds(
        points=torch.from_numpy(showers.hits),
        offsets=torch.from_numpy(showers.offsets),
        condition=torch.from_numpy(showers.energies)[:, None],
    )


def test_codes_that_are_hits_give_these_back() -> None:
    showers = some_showers()
    blank = hit_codes(1)
    own = Tokenizer(HITS, blank.scale, blank.scaled(showers)[0])
    tokens = own.tokens(showers)
    back = own.reconstructed(showers, tokens)
    assert torch.equal(back.points[:, :3], showers.points[:, :3])
    # ln of the energy is interpolated between 500 quantiles, and ends with them.
    error = (back.points[:, 3] / showers.points[:, 3]).log().abs()
    assert error.median() < 1e-5
    assert torch.equal(back.offsets, showers.offsets)


def test_coarse_codes_stay_in_cells_that_were_seen() -> None:
    showers = some_showers(number=60)
    tokenizer = hit_codes(20)
    back = tokenizer.reconstructed(showers, tokenizer.tokens(showers)).points
    assert torch.equal(back[:, :3], back[:, :3].round())
    assert (back[:, :3] >= 0).all()
    assert (back[:, :3] < torch.tensor([12, 12, 15])).all()
    assert (back[:, 3] > 0).all()


def test_tokens_do_not_depend_on_the_batch() -> None:
    showers = some_showers()
    torch.manual_seed(0)
    vqvae = VQTokenizer(HITS, hit_codes(1).scale, torch.randn(16, 4), Shape(16, 1, 2, 4))
    for tokenizer in (hit_codes(), vqvae):
        whole = tokenizer.tokens(showers)
        parts = [showers.select(slice(i, i + 1)) for i in range(len(showers))]
        assert torch.equal(torch.cat([tokenizer.tokens(part) for part in parts]), whole)
        back = tokenizer.reconstructed(showers, whole).points
        alone = [
            tokenizer.reconstructed(part, own).points
            for part, own in zip(parts, whole.split(showers.counts.tolist()), strict=True)
        ]
        assert torch.equal(torch.cat(alone)[:, :3], back[:, :3])


def test_jets_and_showers_are_told_apart() -> None:
    jets = Jets(particles=torch.zeros(3, 4), offsets=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="reads showers, these are jets"):
        hit_codes().tokens(jets)
    with pytest.raises(ValueError, match="reads jets, these are showers"):
        Tokenizer.blank(("ln_pt",), 3).tokens(some_showers())
    with pytest.raises(ValueError, match="all four"):
        Tokenizer.blank(HITS[:3], 3)


@pytest.mark.parametrize("kind", ["kmeans", "vqvae", "bins"])
def test_the_command_fits_hits_and_says_what_is_left(kind, tmp_path, capsys) -> None:
    make_showers(tmp_path / "in", "small", 80, {"train": 0.6, "val": 0.4})
    words = ["--out", str(tmp_path / "out"), "--quiet"]
    assert convert.main([str(tmp_path / "in"), *words]) == 0
    words = [kind, "--data", str(tmp_path / "out"), "--out", str(tmp_path / "t"), "--codes", "81"]
    assert tokenize.main([*words, "--steps", "20", "--shape", "16", "1", "2", "4"]) == 0
    said = capsys.readouterr().out
    for line in (
        "showers",
        "shower energy, change",
        "shower depth, change",
        "hits in a taken cell",
    ):
        assert line in said
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    found = load_tokenizer(tmp_path / "t")
    assert found.features == HITS
    assert found.of_hits
    assert report["fingerprint"] == found.fingerprint
    again = quality(found, some_showers(100, 40))
    assert again.jets == 40
    assert again.observables["depth"].width < 4
    assert again.taken is not None
    assert 0 < again.taken < 1
