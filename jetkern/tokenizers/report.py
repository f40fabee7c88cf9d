"""How much of jets, or of showers, is left in their tokens, and how the codes are used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.clouds import Clouds, Sets
from jetkern.jets import Jets
from jetkern.metrics.showers import observables, oddities
from jetkern.metrics.substructure import mass_and_pt, subjettiness
from jetkern.showers import Showers
from jetkern.tables import table
from jetkern.tokenizers.tokenizer import Tokenizer

RELATIVE = ("mass", "pT", "energy")
OF_SHOWERS = ("depth", "sigma_z", "sigma_r")


@dataclass(frozen=True)
class Resolution:
    """Of a jet observable after tokens: median and half the central 68 % of what changed.

    Changes of those in ``RELATIVE`` are relative, of the others differences.
    """

    bias: float
    width: float


@dataclass(frozen=True)
class Quality:
    """Of a codebook on jets that it has not seen.

    Attributes:
        jets, particles: how many; of showers, they and their hits.
        codes: K.
        dead: share of codes that no particle has.
        perplexity: exp of the entropy of the codes' shares; K if all are used alike.
        error: mean squared error of each feature on its scale, of particles that have it.
        observables: by name; tau21 only where fastjet is installed.
        taken: share of hits in a cell that has one already, of showers.
    """

    jets: int
    particles: int
    codes: int
    dead: float
    perplexity: float
    error: dict[str, float]
    observables: dict[str, Resolution]
    taken: float | None = None


def quality(tokenizer: Tokenizer, jets: Sets) -> Quality:
    """What the tokens keep of these jets, on a CPU.

    Raises:
        ValueError: for jets without particles.
    """
    if not jets.total:
        raise ValueError("the jets to judge a tokeniser by have no particles")
    scaled, known = tokenizer.scaled(jets)
    tokens = tokenizer.tokens(jets)
    used = torch.bincount(tokens, minlength=len(tokenizer.codes)).double()
    share = used[used > 0] / used.sum()
    squares = (tokenizer.approximated(jets, tokens) - scaled).double().square() * known
    error = squares.sum(0) / known.sum(0).clamp(min=1)
    again = tokenizer.reconstructed(jets, tokens)
    before, after = _observed(jets), _observed(again)
    changes = {
        name: after[name] / value - 1 if name in RELATIVE else after[name] - value
        for name, value in before.items()
    }
    showers = Showers.of_clouds(again) if isinstance(again, Clouds) else None
    return Quality(
        jets=len(jets),
        particles=len(tokens),
        codes=len(used),
        dead=float((used == 0).double().mean()),
        perplexity=float(torch.exp(-(share * share.log()).sum())),
        error=dict(zip(tokenizer.features, error.tolist(), strict=True)),
        observables={name: _resolution(change) for name, change in changes.items()},
        taken=None if showers is None else oddities(showers)["taken"],
    )


def _observed(jets: Sets) -> dict[str, NDArray[np.float64]]:
    """Mass, pT and tau21 of jets of at least three particles: others have no shape to keep. Energy,
    depth and widths of showers."""
    if isinstance(jets, Clouds):
        found = observables(Showers.of_clouds(jets))
        return {"energy": found["response"]} | {name: found[name] for name in OF_SHOWERS}
    assert isinstance(jets, Jets)
    jets = jets.select(jets.counts >= 3)
    offsets = jets.offsets.numpy()
    eta, phi, log_pt, _ = jets.particles.double().numpy().T
    mass, pt = mass_and_pt(np.exp(log_pt), eta, phi, offsets)
    found = {"mass": mass, "pT": pt}
    if find_spec("fastjet") and find_spec("awkward") and len(jets):
        tau = subjettiness(np.exp(log_pt), eta, phi, offsets)
        found["tau21"] = np.divide(tau[:, 1], tau[:, 0], where=tau[:, 0] > 0, out=tau[:, 0] * 0)
    return found


def _resolution(change: NDArray[np.float64]) -> Resolution:
    change = change[np.isfinite(change)]
    if not len(change):
        return Resolution(float("nan"), float("nan"))
    low, middle, high = np.quantile(change, (0.16, 0.5, 0.84))
    return Resolution(float(middle), float(high - low) / 2)


def quality_table(found: Quality) -> str:
    """A Markdown table."""
    rows = [["of", "value"]]
    sets, points = ("jets", "particles") if found.taken is None else ("showers", "hits")
    rows += [[sets, f"{found.jets:,}"], [points, f"{found.particles:,}"]]
    rows += [["codes", f"{found.codes:,}"], ["dead codes", f"{found.dead:.2%}"]]
    rows += [["perplexity", f"{found.perplexity:,.0f}"]]
    rows += [[f"squared error of {n}", f"{e:.4f}"] for n, e in found.error.items()]
    for name, r in found.observables.items():
        unit = "{:+.2%} ± {:.2%}" if name in RELATIVE else "{:+.4f} ± {:.4f}"
        rows.append([f"{sets[:-1]} {name}, change", unit.format(r.bias, r.width)])
    if found.taken is not None:
        rows.append(["hits in a taken cell", f"{found.taken:.2%}"])
    return table(rows, "lr", markdown=True)
