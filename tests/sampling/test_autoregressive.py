"""Sets drawn point by point: their law, their random numbers and what can go wrong."""

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from jetkern import Jets
from jetkern.model.decoder import Decoder, DecoderConfig
from jetkern.model.delay import delayed
from jetkern.model.jet_decoder import JetDecoder, JetDecoderConfig
from jetkern.packed import Packed, offsets_from_counts
from jetkern.sampling import (
    Cache,
    Drawing,
    Generated,
    SamplingError,
    generate,
    generate_jets,
)
from jetkern.tokenizers import QuantileNormal, Tokenizer
from tests.ops.helpers import threads

KINDS = {
    "as omnijet": {"classes": (7,), "norm": "layer", "post_norm": True},
    "delays 0123, multi-query, rope": {
        "classes": (5, 3, 4, 6), "delays": (0, 1, 2, 3), "kv_heads": 1, "positions": "rope",
    },
    "gated, registers, rope": {
        "classes": (12, 3), "delays": (0, 1), "kv_heads": 2, "positions": "rope", "norm": "layer",
        "gated": True, "registers": 3,
    },
    "delays 0022": {"classes": (5, 3, 4, 2), "delays": (0, 0, 2, 2)},
}  # fmt: skip


def build(**changes) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(**{"dim": 16, "layers": 2, "heads": 4, **changes}))


def sets_of(generated: Generated) -> list[list]:
    counts = generated.packed.counts.tolist()
    return [points.tolist() for points in generated.points.split(counts)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_cached_steps_have_the_likelihood_of_one_pass(kind: dict) -> None:
    model = build(**kind).double()
    counts = torch.tensor([3, 0, 11, 1])
    columns = [torch.randint(n, (15,)) for n in model.config.classes]
    points, packed = torch.stack(columns, 1), Packed(offsets_from_counts(counts))
    rows = delayed(points, packed, model.config.delays, model.config.classes)
    start, number = rows.packed.offsets[:-1], rows.packed.counts
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = model.to(dtype)
        cache, nats = Cache(model, 4, int(number.max())), torch.zeros(4, dtype=torch.float64)
        with torch.no_grad():
            for row in range(int(number.max())):
                at = start + number.clamp(max=row + 1) - 1  # slots that are over repeat their last
                x = cache.append(rows.inputs[at], torch.full((4,), row))
                losses = model.target_losses(x, rows.targets[at]).sum(1)
                nats += torch.where(row < number, losses, 0.0)
            want = model.negative_log_likelihood(points, packed)
        torch.testing.assert_close(nats, want.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_same_sets_whatever_the_slots_the_order_and_the_threads(kind: dict) -> None:
    model, index = build(**kind), torch.arange(20)
    whole = generate(model, index, seed=3, max_points=9, slots=64)
    want = sets_of(whole)
    assert len({len(points) for points in want}) > 4
    assert 0 < int(whole.cut.sum()) < 20
    assert all(len(p) == 9 for p, cut in zip(want, whole.cut.tolist(), strict=True) if cut)
    for slots in (1, 7):
        again = generate(model, index, seed=3, max_points=9, slots=slots)
        assert sets_of(again) == want
        assert torch.equal(again.cut, whole.cut)
    with threads(3):
        turned = generate(model, index.flip(0), seed=3, max_points=9, slots=7)
    assert sets_of(turned) == want[::-1]
    rest = sets_of(generate(model, index[13:], seed=3, max_points=9, slots=3))  # goes on there
    assert rest == want[13:]
    assert sets_of(generate(model, index, seed=4, max_points=9)) != want
    exact = generate(model.double(), index, seed=3, max_points=9, slots=5)
    assert sum(a != b for a, b in zip(sets_of(exact), want, strict=True)) <= 1


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_prompt_is_kept_and_what_follows_does_not_depend_on_how_it_came(kind: dict) -> None:
    model, index = build(**kind), torch.arange(6)
    settings = {"seed": 1, "max_points": 9}
    whole = sets_of(generate(model, index, **settings))
    first = [points[: min(len(points), n)] for n, points in enumerate(whole)]
    counts = torch.tensor([len(points) for points in first])
    flat = torch.tensor([p for points in first for p in points]).view(-1, len(kind["classes"]))
    prompts = (flat, offsets_from_counts(counts))
    assert sets_of(generate(model, index, prompts=prompts, slots=4, **settings)) == whole
    other = torch.zeros_like(flat)
    made = sets_of(generate(model, index, prompts=(other, prompts[1]), **settings))
    for points, n in zip(made, counts.tolist(), strict=True):
        assert points[:n] == other[:n].tolist()
    long = (flat.new_zeros(5, flat.shape[1]), torch.tensor([0, 2, 5]))
    with pytest.raises(SamplingError, match="prompt of set 3: point 2 is one too many"):
        generate(model, index[2:4], seed=1, max_points=2, prompts=long)
    with pytest.raises(SamplingError, match="prompt of set 5: point 0 is no class"):
        generate(model, index[5:], prompts=(flat[:1] + 9, torch.tensor([0, 1])), **settings)


def test_settings_of_draws() -> None:
    model, index = build(classes=(5, 3), delays=(0, 1)), torch.arange(8)
    largest = generate(model, index, seed=0, max_points=6, drawing=Drawing(temperature=0.0))
    assert len({str(points) for points in sets_of(largest)}) == 1
    assert sets_of(
        generate(model, index, seed=5, max_points=6, drawing=Drawing(top_p=1e-6))
    ) == sets_of(largest)
    never = torch.tensor([True, False, False, False, False, True])  # the end, too
    drawing = [Drawing(forbidden=never, temperature=0.7), Drawing(top_k=1)]
    without = generate(model, index, seed=0, max_points=6, drawing=drawing)
    assert without.cut.all()
    assert without.points[:, 0].min() > 0
    assert generate(model, index[:0], seed=0, max_points=6).points.shape == (0, 2)


def test_what_cannot_be_drawn_names_set_and_row() -> None:
    model = build(classes=(5,))
    with pytest.raises(ValueError, match="all 6 classes are forbidden"):
        generate(model, torch.arange(2), seed=0, max_points=3,
                 drawing=Drawing(forbidden=torch.ones(6, dtype=torch.bool)))  # fmt: skip
    with torch.no_grad():
        model.embeddings[0].weight[5] = 0.0
        model.embeddings[0].weight[:5] = torch.nan  # after the first point
        model.heads[0].bias[5] = -torch.inf
    with pytest.raises(SamplingError, match=r"set 7, row 1: no class of stream 0"):
        generate(model, torch.tensor([7, 3]), seed=0, max_points=3)
    for changes, message in (
        ({"max_points": 0}, "max_points must be"), ({"slots": 0}, "slots must be"),
        ({"drawing": []}, "0 drawings for 1 streams"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            generate(model, torch.arange(2), **{"seed": 0, "max_points": 3, **changes})


def markov() -> tuple[Decoder, Tensor]:
    """A decoder of a Markov chain whose next class is known exactly, and its law (from, to)."""
    law = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.1, 0.2], [0.3, 0.3, 0.2, 0.2],
                        [0.4, 0.3, 0.2, 0.1]])  # fmt: skip
    model = Decoder(DecoderConfig(classes=(3,), dim=4, layers=1, heads=1, norm="layer"))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.embeddings[0].weight.copy_(torch.eye(4))  # of the last class, or of the start
        model.norm.weight.fill_(1.0)  # of (1, 0, 0, 0): 3 / sqrt 3, and -1 / sqrt 3 elsewhere
        model.heads[0].weight.copy_(law.log().T / (4 / 3**0.5))
        model.heads[0].bias.copy_(law.log().sum(0) / 4)
    return model, law


def chance(found: Tensor, want: Tensor, freedom: int) -> float:
    """Of counts at least as far from those wanted: Pearson's test."""
    return float(chi2.sf(float(((found - want).square() / want).sum()), freedom))


def test_lengths_and_pairs_are_those_of_a_known_source() -> None:
    """By any seed: a right sampler fails by chance with 2 in 10,000."""
    model, law = markov()
    with torch.no_grad():
        logits = model.heads[0](model(torch.arange(4)[:, None], Packed(torch.arange(5)))).double()
    made = logits.softmax(-1)
    torch.testing.assert_close(made, law.double(), atol=1e-3, rtol=0)
    for seed in (0, 1, 2):
        generated = generate(model, torch.arange(4000), seed=seed, max_points=120, slots=1024)
        assert not generated.cut.any()
        rows = delayed(generated.points, generated.packed, (0,), (3,))
        pairs = torch.bincount(rows.inputs[:, 0] * 4 + rows.targets[:, 0], minlength=16).view(4, 4)
        each = pairs.sum(1, keepdim=True)
        assert chance(pairs, each * made, 12) > 1e-4
        still, lengths = made[3, :3], [float(made[3, 3])]
        for _ in range(11):
            lengths.append(float(still @ made[:3, 3]))
            still = still @ made[:3, :3]
        want = 4000 * torch.tensor([*lengths, 1 - sum(lengths)])
        found = torch.bincount(generated.packed.counts.clamp(max=12), minlength=13)
        assert chance(found, want, 12) > 1e-4
        # It would see a temperature of 1.2 in place of 1.
        assert chance(pairs, each * (logits / 1.2).softmax(-1), 12) < 1e-6


def test_jets_are_what_their_tokens_stand_for() -> None:
    features = ("delta_eta", "delta_phi", "ln_pt")
    jets = Jets(particles=torch.randn(60, 4), offsets=torch.tensor([0, 40, 60]))
    values, _ = Tokenizer.blank(features, 0).values(jets)
    scale = QuantileNormal.fit([column.numpy() for column in values.T])
    tokenizer = Tokenizer(features, scale, scale(values)[:9])
    torch.manual_seed(0)
    size = {"dim": 16, "layers": 1, "heads": 2}
    model = JetDecoder(JetDecoderConfig(classes=(9,), features=features, **size))
    model.keep_tokenizer(tokenizer)
    index = torch.arange(5)
    made, cut = generate_jets(model, index, seed=0, max_particles=20)
    points, packed, want = generate(model.body, index, seed=0, max_points=20)
    assert torch.equal(made.offsets, packed.offsets)
    assert torch.equal(cut, want)
    torch.testing.assert_close(made.particles[:, :3], tokenizer.decoded(points[:, 0]))
    assert torch.equal(tokenizer.tokens(made), points[:, 0])
    part, _ = generate_jets(model, index[3:], seed=0, max_particles=20)
    assert torch.equal(part.particles, made.select(slice(3, 5)).particles)
    other = JetDecoderConfig(classes=(9,), features=features, parts=("classifier",), **size)
    with pytest.raises(SamplingError, match="read and predict tokens"):
        generate_jets(JetDecoder(other), index, seed=0)
