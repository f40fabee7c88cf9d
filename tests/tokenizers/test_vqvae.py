import json
from pathlib import Path

import pytest
import torch

from jetkern import Jets, cli
from jetkern.model.vqvae import Codebook, Shape, VQTokenizer, losses
from jetkern.tokenizers import QuantileNormal
from jetkern.tokenizers.kmeans import STEP, code_sums
from jetkern.tokenizers.report import quality
from jetkern.training import tokenize as fits
from jetkern.training.checkpoints import RunError
from jetkern.training.distributed import World
from jetkern.training.tokenize import load_tokenizer
from jetkern.training.vqvae import VQFit
from tests.factories import write_toy_shards
from tests.tokenizers.test_tokenizer import some_jets

FEATURES = ("delta_eta", "ln_pt", "d0")
SHAPE = Shape(16, 1, 2, 4)
WORLD = World(0, 1, torch.device("cpu"))


def blank(codes: int = 0) -> VQTokenizer:
    torch.manual_seed(0)
    found = VQTokenizer.blank(FEATURES, codes, SHAPE)
    values, known = found.values(some_jets([200]))
    columns = [v[k].numpy() for v, k in zip(values.T, known.T, strict=True)]
    found.scale = QuantileNormal.fit(columns)
    return found


def fitted(steps: int = 40, codes: int = 16) -> tuple[VQFit, Jets]:
    jets = some_jets([20, 0, 1, 30, 9] * 4)
    fit = VQFit(blank(), jets, codes, 3, steps=steps, world=WORLD)
    for _ in range(steps):
        fit.update(jets)
    return fit, jets


def test_it_learns_to_reconstruct_and_no_code_dies() -> None:
    fit, jets = fitted(400)
    before, after = quality(fitted(1)[0].tokenizer, jets), quality(fit.tokenizer, jets)
    assert sum(after.error.values()) < 0.6 * sum(before.error.values())
    assert after.dead == 0
    assert after.perplexity > 8


def test_tokens_depend_on_the_jet_and_not_on_the_batch() -> None:
    tokenizer, jets = (f := fitted(20))[0].tokenizer, f[1]
    tokens = tokenizer.tokens(jets)
    assert int(tokens.max()) < 16
    alone = [tokenizer.tokens(jets.select(slice(i, i + 1))) for i in range(len(jets))]
    assert torch.equal(torch.cat(alone), tokens)
    keep = torch.rand(len(tokens), generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(
        tokenizer.tokens_of(jets, jets.keep_particles(keep), keep.nonzero()[:, 0]), tokens[keep]
    )
    assert not torch.equal(tokenizer.tokens(jets.keep_particles(keep)), tokens[keep])
    again = tokenizer.reconstructed(jets, tokens)
    assert torch.equal(again.particles[:, 1], jets.particles[:, 1])  # not among the features
    with pytest.raises(ValueError, match="no features outside a jet"):
        tokenizer.decoded(tokens)
    with pytest.raises(ValueError, match="no codes"):
        blank().tokens(jets)


def test_the_gradient_at_a_code_is_handed_on_to_its_latent() -> None:
    tokenizer, jets = (f := fitted(5))[0].tokenizer, f[1]
    total, _ = losses(tokenizer, jets)
    assert not tokenizer.codes.requires_grad
    (through,) = torch.autograd.grad(total, [tokenizer.embed.weight])
    assert through.abs().sum() > 0
    latents = tokenizer.latents(jets)[0].detach().requires_grad_()
    code = tokenizer.codes[tokenizer.tokens(jets)]
    handed = latents + (code - latents.detach())
    weight = torch.randn_like(tokenizer.decode(handed, jets.offsets))
    first = torch.autograd.grad((tokenizer.decode(handed, jets.offsets) * weight).sum(), latents)
    direct = code.clone().requires_grad_()
    second = torch.autograd.grad((tokenizer.decode(direct, jets.offsets) * weight).sum(), direct)
    torch.testing.assert_close(first[0], second[0], atol=1e-5, rtol=1e-4)


def test_codes_are_averages_and_dead_ones_are_replaced() -> None:
    tokenizer, jets = blank(), some_jets([40] * 4)
    book = Codebook(tokenizer, jets, 8, 1, every=2)
    counts, sums = book.counts.clone(), book.sums.clone()
    latents = tokenizer.latents(jets)[0].detach()
    tokens = tokenizer.tokens(jets)
    batch = code_sums(latents, tokenizer.codes, tokens)
    book.update(batch)
    torch.testing.assert_close(book.counts, 0.99 * counts + 0.01 * batch[:, 0])
    torch.testing.assert_close(book.sums, 0.99 * sums + 0.01 * STEP * batch[:, 1:])
    torch.testing.assert_close(tokenizer.codes.norm(dim=1), torch.ones(8))
    batch[3] = 0
    book.used[3] = 0
    book.update(batch)
    nearest = (latents - tokenizer.codes[3]).square().sum(1).min()
    assert nearest < 1e-6  # it is one of the pool's now
    other = Codebook(blank(), jets, 8, 1, every=2)
    with pytest.raises(ValueError, match="of another fit"):
        other.load_state(Codebook(blank(), jets, 7, 1, every=2).state())


def test_parts_of_a_batch_add_up() -> None:
    """What processes that share a batch learn is what one would, to rounding."""
    tokenizer, jets = (f := fitted(5))[0].tokenizer, f[1]
    whole, sums = losses(tokenizer, jets)
    parts = [losses(tokenizer, jets.select(slice(*s))) for s in ((0, 7), (7, 20))]
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0])
    assert torch.equal(sums[:, 0], parts[0][1][:, 0] + parts[1][1][:, 0])


def test_the_fingerprint_is_that_of_networks_too() -> None:
    one, same = fitted(3)[0].tokenizer, fitted(3)[0].tokenizer
    assert one.fingerprint == same.fingerprint
    copy = VQTokenizer.blank(FEATURES, 16, SHAPE)
    copy.load_state_dict(one.state_dict())
    assert copy.fingerprint == one.fingerprint
    with torch.no_grad():
        copy.out.bias[0] += 1
    assert copy.fingerprint != one.fingerprint
    with pytest.raises(ValueError, match=r"shape .* cannot be"):
        VQTokenizer.blank(FEATURES, 4, (16, 1, 3, 4))


def test_the_command_fits_and_an_interrupted_fit_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, split in enumerate(("train", "val")):
        write_toy_shards(tmp_path / "toy" / split, ["QCD", "Hbb"], jets=256, seed=seed)

    def fit(out: str) -> int:
        words = f"vqvae --data {tmp_path}/toy --out {tmp_path / out} --codes 16 --batch-size 64 "
        words += "--steps 25 --shape 16 1 2 4 --threads 1"
        with pytest.raises(SystemExit) as end:
            cli.run("tokenize", words.split())
        assert isinstance(end.value.code, int)
        return end.value.code

    assert fit("whole") == 0
    whole = load_tokenizer(tmp_path / "whole")
    assert isinstance(whole, VQTokenizer)
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["fingerprint"] == whole.fingerprint
    assert report["dead"] < 0.2

    monkeypatch.setattr(fits, "SAVE_SECONDS", 0.0)
    update, seen = VQFit.update, []

    def dying(self: VQFit, jets: Jets) -> None:
        seen.append(0)
        if len(seen) == 22:
            raise KeyboardInterrupt
        update(self, jets)

    monkeypatch.setattr(VQFit, "update", dying)
    assert fit("killed") == 130
    with pytest.raises(RunError, match="not a tokeniser whose fit has ended"):
        load_tokenizer(tmp_path / "killed")
    assert fit("killed") == 0
    assert len(seen) == 26
    states = [
        next((tmp_path / n / "checkpoints").glob("step-*26/state.pt")) for n in ("whole", "killed")
    ]
    assert states[0].read_bytes() == states[1].read_bytes()
