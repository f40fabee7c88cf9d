"""How much of jets is left in their tokens, and how the codes are used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.jets import Jets
from jetkern.metrics.substructure import mass_and_pt, subjettiness
from jetkern.tables import table
from jetkern.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Resolution:
    """Of a jet observable after tokens: median and half the central 68 % of what changed.

    For mass and pT the change is relative, for tau21 the difference.
    """

    bias: float
    width: float


@dataclass(frozen=True)
class Quality:
    """Of a codebook on jets that it has not seen.

    Attributes:
        jets, particles: how many.
        codes: K.
        dead: share of codes that no particle has.
        perplexity: exp of the entropy of the codes' shares; K if all are used alike.
        error: mean squared error of each feature on its scale, of particles that have it.
        observables: by name; tau21 only where fastjet is installed.
    """

    jets: int
    particles: int
    codes: int
    dead: float
    perplexity: float
    error: dict[str, float]
    observables: dict[str, Resolution]


def quality(tokenizer: Tokenizer, jets: Jets) -> Quality:
    """What the tokens keep of these jets, on a CPU.

    Raises:
        ValueError: for jets without particles.
    """
    if not len(jets.particles):
        raise ValueError("the jets to judge a tokeniser by have no particles")
    scaled, known = tokenizer.scaled(jets)
    tokens = tokenizer.tokens(jets)
    used = torch.bincount(tokens, minlength=len(tokenizer.codes)).double()
    share = used[used > 0] / used.sum()
    squares = (tokenizer.approximated(jets, tokens) - scaled).double().square() * known
    error = squares.sum(0) / known.sum(0).clamp(min=1)
    before, after = _observed(jets), _observed(tokenizer.reconstructed(jets, tokens))
    changes = {
        name: after[name] - value if name == "tau21" else after[name] / value - 1
        for name, value in before.items()
    }
    return Quality(
        jets=len(jets),
        particles=len(tokens),
        codes=len(used),
        dead=float((used == 0).double().mean()),
        perplexity=float(torch.exp(-(share * share.log()).sum())),
        error=dict(zip(tokenizer.features, error.tolist(), strict=True)),
        observables={name: _resolution(change) for name, change in changes.items()},
    )


def _observed(jets: Jets) -> dict[str, NDArray[np.float64]]:
    """Mass, pT and tau21 of jets of at least three particles: others have no shape to keep."""
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
    rows += [["jets", f"{found.jets:,}"], ["particles", f"{found.particles:,}"]]
    rows += [["codes", f"{found.codes:,}"], ["dead codes", f"{found.dead:.2%}"]]
    rows += [["perplexity", f"{found.perplexity:,.0f}"]]
    rows += [[f"squared error of {n}", f"{e:.4f}"] for n, e in found.error.items()]
    for name, r in found.observables.items():
        unit = "{:+.4f} ± {:.4f}" if name == "tau21" else "{:+.2%} ± {:.2%}"
        rows.append([f"jet {name}, change", unit.format(r.bias, r.width)])
    return table(rows, "lr", markdown=True)
