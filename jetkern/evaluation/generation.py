"""How close generated jets are to real ones, type by type, beside real jets against real jets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.jets import Jets
from jetkern.metrics.classification import Estimate
from jetkern.metrics.efp import energy_flow_polynomials, multigraphs, prime_multigraphs
from jetkern.metrics.generation import (
    BATCH_SIZE,
    BATCHES,
    Sample,
    bootstrap_wasserstein,
    coverage_and_mmd,
    frechet_physics_distance,
    kernel_physics_distance,
    w1_efp,
    w1_particles,
)
from jetkern.metrics.substructure import mass_and_pt, observables

AVERAGE = "average"
KPD_JETS = 2000  # of a resampling, for the n^2 kernel


@dataclass(frozen=True)
class Distance:
    """A distance of generated from real jets, and that of one half of the real jets from the other.

    Both are from samples of one size, so the floor is what no generator can be expected to beat.
    """

    value: Estimate
    floor: Estimate


@dataclass(frozen=True)
class GenerationReport:
    """Distances by type and name; ``jets`` drawn for each resampling, by type.

    ``evaluations`` of the network made a jet, None if that is not known. ``species``: what
    ``jetkern.evaluation.species`` says of jets with identities.
    """

    distances: dict[str, dict[str, Distance]]
    jets: dict[str, int]
    evaluations: int | None = None
    species: dict[str, Any] = field(default_factory=dict)


def generation_report(
    real: Jets,
    generated: Jets,
    classes: Sequence[str],
    *,
    batches: int = BATCHES,
    size: int = BATCH_SIZE,
    seed: int = 0,
    coverage: int = 0,
) -> GenerationReport:
    """W1 of all observables, W1M, W1P, W1EFP, FPD and KPD of each type and averaged over types.

    Args:
        real, generated: with labels; types without jets in one of them are left out.
        classes: names of the types.
        batches: resamplings.
        size: jets of a resampling; fewer where half the real jets of a type are fewer.
        seed: of resamplings and halves.
        coverage: jets of a resampling for coverage and the minimum matching distance, whose cost
            is its square; 0 for none. They need POT.

    Raises:
        ValueError: if no type has jets in both, or jets have no labels.
    """
    found: dict[str, dict[str, Distance]] = {}
    sizes: dict[str, int] = {}
    for number, name in enumerate(classes):
        one, other = jets_of_type(real, number), jets_of_type(generated, number)
        if len(one) < 4 or not len(other):
            continue
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(one)))
        first, second = (one.select(half.sort().values) for half in order.tensor_split(2))
        drawn = min(size, len(one) // 2, len(other))
        options = {"batches": batches, "size": drawn, "seed": seed, "coverage": coverage}
        values = _distances(_Features(one), _Features(other), options)
        floors = _distances(_Features(first), _Features(second), options)
        found[name] = {k: Distance(v, floors[k]) for k, v in values.items()}
        sizes[name] = drawn
    if not found:
        raise ValueError("no type has four real jets and a generated one")
    each = list(found.values())
    found[AVERAGE] = {
        k: Distance(_mean([d[k].value for d in each]), _mean([d[k].floor for d in each]))
        for k in each[0]
    }
    return GenerationReport(found, sizes)


def jets_of_type(jets: Jets, label: int) -> Jets:
    """Those of one label.

    Raises:
        ValueError: if the jets have no labels.
    """
    if jets.label is None:
        raise ValueError("jets need the label of their type")
    return jets.select(torch.nonzero(jets.label == label)[:, 0])


def generation_table(report: GenerationReport) -> str:
    """Markdown: one row for each distance, the average over types and then each type, each with
    its error and beside that of real jets."""
    types = [AVERAGE, *(t for t in report.distances if t != AVERAGE)]
    lines = [
        f"| distance | {' | '.join(f'{t} | {t}, real' for t in types)} |",
        f"|---|{'---:|---:|' * len(types)}",
    ]
    for name in report.distances[AVERAGE]:
        cells: list[str] = []
        for kind in types:
            distance = report.distances[kind].get(name)
            cells += ["", ""] if distance is None else map(_shown, (distance.value, distance.floor))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    drawn = ", ".join(f"{n:,} {t}" for t, n in report.jets.items())
    return "\n".join([*lines, "", f"Jets of a resampling: {drawn}."])


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} ± {estimate.error:.1g}"


class _Features:
    """What the distances of a set of jets need, computed once."""

    def __init__(self, jets: Jets) -> None:
        self.offsets = jets.offsets.numpy()
        eta, phi, log_pt = jets.particles.double().numpy().T[:3]
        pt = np.exp(log_pt)
        self.observables = observables(jets)
        mass, jet_pt = mass_and_pt(pt, eta, phi, self.offsets)
        scale = np.where(jet_pt > 0, jet_pt, 1.0)
        relative = pt / np.repeat(scale, np.diff(self.offsets))
        self.relative_mass = Sample(mass / scale)
        self.relative = [Sample(v, self.offsets) for v in (eta, phi, relative)]
        self.jets = np.split(np.stack([eta, phi, relative], axis=1), self.offsets[1:-1])

        def polynomials(graphs: Any) -> NDArray[np.float64]:
            return energy_flow_polynomials(pt, eta, phi, self.offsets, graphs)

        self.prime = polynomials(prime_multigraphs(4, 4))
        self.all_graphs = polynomials(multigraphs(4))


def _distances(real: _Features, made: _Features, options: dict[str, int]) -> dict[str, Estimate]:
    options = dict(options)
    coverage, seed = options.pop("coverage"), options["seed"]
    found = {
        f"W1 {name}": bootstrap_wasserstein(sample, made.observables[name], **options)
        for name, sample in real.observables.items()
    }
    found["W1M"] = bootstrap_wasserstein(real.relative_mass, made.relative_mass, **options)
    found["W1P"] = w1_particles(real.relative, made.relative, **options)[0]
    found["W1EFP"] = w1_efp(real.prime, made.prime, **options)[0]
    most = options["size"]
    found["FPD"] = frechet_physics_distance(
        real.all_graphs, made.all_graphs, least=max(2, 2 * most // 5), most=max(3, most)
    )
    found["KPD"] = kernel_physics_distance(
        real.all_graphs, made.all_graphs, size=max(2, min(KPD_JETS, most))
    )
    if coverage:
        found["coverage"], found["MMD"] = coverage_and_mmd(
            real.jets, made.jets, size=min(coverage, most), seed=seed
        )
    return found


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates."""
    errors = np.array([e.error for e in estimates])
    mean = float(np.mean([e.value for e in estimates]))
    return Estimate(mean, float(np.sqrt((errors**2).sum()) / len(errors)))
