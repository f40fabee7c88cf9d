"""The sanity sheet: what came out, class by class, as a figure and a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import awkward as ak
import fastjet
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jetkern.plots import STYLE, ridges, save, sheet
from jetkern.simulate import SimulationError, flavour
from jetkern.simulate.detector import PID
from jetkern.simulate.files import reading
from jetkern.simulate.jets import fastjet_input
from jetkern.simulate.processes import DATA_SETS, DataSet
from jetkern.simulate.run import jetnet_path
from jetkern.tables import table

MAX_JETS = 2000
PEAKS = {"W": 80.4, "Z": 91.2, "H": 125.0, "t": 172.8}
LEPTONS = [PID[pdg] for pdg in (-13, -11, 11, 13)]


@dataclass(frozen=True)
class Summary:
    """Jet-level quantities of one class, (M,) each; the last two are None without tracks.

    Attributes:
        multiplicity, mass, soft_drop_mass: mass in GeV.
        tau21, tau32: N-subjettiness ratios, beta = 1, one-pass exclusive-kT axes.
        third_significance: third-largest abs(d0) / error of the jet's tracks.
        lepton_pt: pT in GeV of the hardest electron or muon, 0 for none.
    """

    multiplicity: NDArray
    mass: NDArray
    soft_drop_mass: NDArray
    tau21: NDArray
    tau32: NDArray
    third_significance: NDArray | None
    lepton_pt: NDArray | None


def sanity_sheet(out: Path, name: str, path: Path) -> str:
    """Draws the jets in ``out`` to ``path``; the table, from at most 2000 jets of each class.

    Raises:
        SimulationError: if a class has no file in ``out``.
    """
    data_set = DATA_SETS[name]
    with mpl.rc_context(STYLE):
        if data_set.flavour:
            flavours = {kind: _flavour(out, data_set, kind) for kind in data_set.class_names}
            save(flavour.figure(flavours, data_set), path)
            return flavour.summary_table(flavours)
        classes = {kind: summarise(out, data_set, kind) for kind in data_set.class_names}
        save(figure(classes, data_set), path)
    return summary_table(classes)


def _flavour(out: Path, data_set: DataSet, kind: str) -> flavour.Summary:
    parts: list[flavour.Summary] = []
    for path in _paths(out, data_set, kind):
        missing = MAX_JETS - sum(len(part.tracks) for part in parts)
        if missing > 0:
            parts.append(flavour.summarise(path, missing))
    return flavour.merge(parts)


def _paths(out: Path, data_set: DataSet, kind: str) -> list[Path]:
    """The files of a class.

    Raises:
        SimulationError: if there is none.
    """
    if data_set.name == "jetnet":
        paths = [jetnet_path(out, kind)]
    else:
        paths = sorted(out.glob(f"*/{data_set.name}_{kind}_*.h5"), key=lambda path: path.name)
    paths = [path for path in paths if path.exists()]
    if not paths:
        raise SimulationError(f"{out} has no jets of class {kind}")
    return paths


def summarise(out: Path, data_set: DataSet, kind: str) -> Summary:
    """The jet-level quantities of one class."""
    parts: list[tuple[NDArray, ...]] = []
    missing = MAX_JETS
    for path in _paths(out, data_set, kind):
        if missing:
            parts.append(_read(path, data_set, missing))
            missing -= len(parts[-1][0])
    momenta, mask, mass, others = (np.concatenate(p) for p in zip(*parts, strict=True))
    soft_drop_mass, tau = substructure(momenta, mask, data_set.radius)
    third = lepton = None
    if data_set.tracks:
        pid, tanh_d0, error = others[..., 0], others[..., 1], others[..., 2]
        d0 = np.arctanh(np.clip(tanh_d0, -1 + 1e-7, 1 - 1e-7))
        significance = np.abs(d0) / np.where(error > 0, error, np.inf)
        third = np.sort(significance, axis=1)[:, -3]
        pt = np.hypot(momenta[..., 0], momenta[..., 1])
        lepton = np.where(np.isin(pid, LEPTONS), pt, 0).max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau21, tau32 = tau[:, 1] / tau[:, 0], tau[:, 2] / tau[:, 1]
    return Summary(mask.sum(1), mass, soft_drop_mass, tau21, tau32, third, lepton)


def _read(path: Path, data_set: DataSet, jets: int) -> tuple[NDArray, ...]:
    """Momenta (M, P, 4) px, py, pz, E; mask (M, P); jet mass (M,); other columns (M, P, 0 or 5)."""
    with reading(path) as file:
        if data_set.name == "jetnet":
            data = file["particle_features"][:jets].astype(float)
            summary = file["jet_features"][:jets].astype(float)
            mask, mass = data[..., 3] > 0, summary[:, 2]
            eta, phi = data[..., 0] + summary[:, 1, None], data[..., 1]
            pt = data[..., 2] * summary[:, 0, None]
            energy = pt * np.cosh(eta)
        else:
            data = file["data"][:jets].astype(float)
            summary = file["global"][:jets].astype(float)
            mask = np.arange(data.shape[1]) < file["num_particles"][:jets][:, None]
            mass = summary[:, 3]
            eta, phi = data[..., 0] + summary[:, 1, None], data[..., 1] + summary[:, 2, None]
            pt, energy = np.exp(data[..., 2]), np.exp(data[..., 3])
    momenta = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), energy], axis=-1)
    momenta[~mask] = 0
    return momenta, mask, mass, data[..., 4:] if data_set.tracks else data[..., :0]


def substructure(momenta: NDArray, mask: NDArray, radius: float) -> tuple[NDArray, NDArray]:
    """Soft-drop mass (M,) with z > 0.1, beta = 0, and N-subjettiness (M, 3) with beta = 1."""
    definition = fastjet.JetDefinition(fastjet.cambridge_algorithm, 10.0)
    sequence = fastjet.ClusterSequence(fastjet_input(momenta[mask], mask.sum(1)), definition)
    groomed = sequence.exclusive_jets_softdrop_grooming(
        njets=1, beta=0.0, symmetry_cut=0.1, R0=radius
    )
    tau = sequence.njettiness(
        measure_definition="NormalizedMeasure",
        axes_definition="OnePass_KT_Axes",
        njets=[1, 2, 3],
        beta=1,
        R0=radius,
    )
    return ak.to_numpy(groomed.msoftdrop), ak.to_numpy(tau)


def summary_table(classes: dict[str, Summary]) -> str:
    """Means and deviations, medians and fractions as a Markdown table, one line per class."""
    rows = [
        [
            "class", "jets", "constituents", "mass median", "soft-drop mode", "tau21", "tau32",
            "third abs(d0)/sigma > 5", "lepton pT > 20",
        ]
    ]  # fmt: skip
    for name, s in classes.items():
        cells = [
            name,
            f"{len(s.mass)}",
            f"{s.multiplicity.mean():.1f} +- {s.multiplicity.std():.1f}",
            f"{np.median(s.mass):.0f}",
            f"{mode(s.soft_drop_mass):.0f}",
            f"{np.nanmedian(s.tau21):.2f}",
            f"{np.nanmedian(s.tau32):.2f}",
            "-" if s.third_significance is None else f"{(s.third_significance > 5).mean():.2f}",
            "-" if s.lepton_pt is None else f"{(s.lepton_pt > 20).mean():.2f}",
        ]
        rows.append(cells)
    return table(rows, markdown=True)


def mode(values: NDArray, low: float = 0.0, high: float = 250.0, window: float = 6.0) -> float:
    """Centre of the window that holds the most values, GeV."""
    centers = np.arange(low + window / 2, high)
    values = np.sort(values)
    inside = np.searchsorted(values, centers + window / 2) - np.searchsorted(
        values, centers - window / 2
    )
    return float(centers[inside.argmax()])


def figure(classes: dict[str, Summary], data_set: DataSet) -> Figure:
    """Up to six panels of distributions, a ridge for each class."""
    panels: list[tuple[str, str, NDArray]] = [
        ("multiplicity", "constituents", np.arange(0, data_set.padding + 4, 4) - 0.5),
        ("mass", "jet mass [GeV]", np.arange(0, 252, 4)),
        ("soft_drop_mass", "soft-drop mass [GeV]", np.arange(0, 252, 4)),
        ("tau21", "tau21", np.linspace(0, 1, 41)),
        ("tau32", "tau32", np.linspace(0, 1, 41)),
    ]
    if data_set.tracks:
        panels.append(
            ("third_significance", "third-largest abs(d0) / error", np.geomspace(0.3, 300, 41))
        )
    drawing = sheet(len(panels), 3, title=data_set.title, height=1.3)
    for number, (axes, (name, label, edges)) in enumerate(zip(drawing.axes, panels, strict=True)):
        values = {kind: getattr(summary, name) for kind, summary in classes.items()}
        ridges(axes, values, edges, names=number % 3 == 0)
        axes.set_xlabel(label)
        if name == "third_significance":
            axes.set_xscale("log")
        if name.endswith("mass"):
            for particle, peak in PEAKS.items():
                axes.axvline(peak, color="0.5", lw=0.8, ls=":")
                axes.text(peak, 1.01, particle, transform=axes.get_xaxis_transform(), ha="center")
    return drawing
