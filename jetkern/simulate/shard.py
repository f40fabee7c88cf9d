"""One unit of work: the jets of one kind, from a seed to a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from jetkern.simulate import SimulationError
from jetkern.simulate.detector import CARDS, Candidates, Particles, detect
from jetkern.simulate.events import Events, direction
from jetkern.simulate.files import writing
from jetkern.simulate.generator import Generator, HardProcessVeto
from jetkern.simulate.jets import PaddedJets, cluster, leading, only, padded
from jetkern.simulate.processes import DATA_SETS, DataSet, Kind
from jetkern.simulate.truth import (
    NO_TRUTH,
    find_origins,
    find_targets,
    jet_flavour,
    matched,
    number_vertices,
)

REVISION = 1  # raised when the same seed gives other jets
LIBRARIES = ("pythia8mc", "fastjet", "numpy")
BATCH = 200  # events at a time: larger costs memory, smaller costs overhead
MIN_BATCH = 20
EVENTS_PER_JET = 3  # until it is known
MAX_FRUITLESS_EVENTS = 50_000

# Slack of the veto on the hard process: showers and the detector move a jet this far.
VETO_PT_SLACK = 60.0
VETO_ETA_SLACK = 0.3
VETO_SPREAD_SLACK = 0.05

MIN_TRACK_PT = 0.5  # GeV, of a flavour jet's tracks
MAX_TRACK_RADIUS = 300.0  # mm from the beam, of where they are made

GLOBAL_COLUMNS = ("jet_pt", "jet_eta", "jet_phi", "jet_mass", "multiplicity/100")


@dataclass(frozen=True)
class Unit:
    """A shard to make.

    Attributes:
        data_set, kind: names in ``processes``.
        split: "train", "val", "test" or "" if the set has no splits.
        index: number of the shard among those of its kind, over all splits.
        jets: how many. seed: the seed of the whole run. mpi: multi-parton interactions.
        path: the file to write.
    """

    data_set: str
    kind: str
    split: str
    index: int
    jets: int
    seed: int
    mpi: bool
    path: Path

    @property
    def definition(self) -> tuple[DataSet, Kind]:
        data_set = DATA_SETS[self.data_set]
        return data_set, next(kind for kind in data_set.kinds if kind.name == self.kind)

    @property
    def cost(self) -> float:
        """Seconds it is expected to take, for scheduling only."""
        return self.jets / self.definition[1].speed


def versions() -> dict[str, str]:
    """Versions of the libraries that determine the jets."""
    return {name: version(name) for name in LIBRARIES}


def make_shard(unit: Unit, report: Callable[[int], None]) -> None:
    """Simulates the jets of a unit and writes them; the file appears whole or not at all.

    Args:
        report: called with the number of jets after every batch of events.

    Raises:
        SimulationError: if Pythia does not start, no event gives a jet, or the file cannot be
            written.
    """
    data_set, kind = unit.definition
    seeds = np.random.SeedSequence(
        unit.seed, spawn_key=(list(DATA_SETS).index(unit.data_set), kind.label, unit.index)
    )
    *pythia_seeds, _ = (int(s % 900_000_000) + 1 for s in seeds.generate_state(8))
    rng = np.random.default_rng(seeds)
    common = data_set.settings(unit.mpi)
    generators = [
        Generator((*common, *settings), pythia_seeds[i], _veto(data_set, kind))
        for i, settings in enumerate(kind.settings)
    ]
    batches: list[PaddedJets] = []
    found, turn = 0, 0
    while found < unit.jets:
        generated = sum(g.generated for g in generators)
        if not found and generated >= MAX_FRUITLESS_EVENTS:
            raise SimulationError(f"{unit.data_set} {unit.kind}: no jet in {generated} events")
        wanted = (unit.jets - found) * (generated / found if found else EVENTS_PER_JET)
        generator = generators[turn % len(generators)]
        jets = jets_of(generator.next(int(np.clip(wanted, MIN_BATCH, BATCH))), data_set, kind, rng)
        batches.append(jets)
        report(min(len(jets), unit.jets - found))
        found += len(jets)
        turn += 1
    jets = PaddedJets.concat(batches)
    provenance = {
        "data_set": unit.data_set,
        "class": unit.kind,
        "split": unit.split,
        "shard": unit.index,
        "seed": unit.seed,
        "pythia_seeds": pythia_seeds[: len(generators)],
        "pythia_settings": [[*common, *settings] for settings in kind.settings],
        "veto": _veto_limits(data_set) if _veto(data_set, kind) else None,
        "detector": data_set.card,
        "selection": {
            "anti_kt_radius": data_set.radius,
            "jet_pt_GeV": data_set.jet_pt,
            "max_abs_eta": data_set.jet_eta,
            "leading_only": data_set.leading,
            "matching": data_set.matching if kind.targets else None,
        },
        "events": sum(g.generated for g in generators),
        "jets_selected": found,
        "constituents_beyond_padding": int(jets.dropped[: unit.jets].sum()),
        "cross_section_pb": [list(g.cross_section()) for g in generators],
        "revision": REVISION,
        "versions": versions(),
    }
    write = write_jetnet if unit.data_set == "jetnet" else write_omnilearned
    with writing(unit.path) as file:
        file.attrs["title"] = data_set.title
        file.attrs["classes"] = data_set.class_names
        file.attrs["provenance"] = json.dumps(provenance)
        write(file, jets[: unit.jets], data_set, kind)


def jets_of(events: Events, data_set: DataSet, kind: Kind, rng: np.random.Generator) -> PaddedJets:
    """The selected jets of a batch of events, after the detector."""
    final = np.flatnonzero(events.status > 0)
    particles = Particles(
        events.event[final],
        events.id[final],
        events.charge[final],
        events.mass[final],
        events.p[final],
        events.vertex[final],
    )
    candidates = detect(particles, CARDS[data_set.card], rng)
    low, high = data_set.jet_pt
    jets = cluster(candidates, len(events), data_set.radius, low)
    eta, phi = direction(jets.p)
    keep = (jets.pt < high) & (np.abs(eta) < data_set.jet_eta)
    if data_set.leading:
        keep &= leading(jets)
    if kind.targets:
        targets = find_targets(events, kind.targets, data_set.matching)
        rows = np.flatnonzero(keep)
        keep[rows] = matched(targets, jets.event[rows], eta[rows], phi[rows], data_set.radius)
    if data_set.flavour:
        jets = only(jets, _good_tracks(particles, candidates))
        flavour = jet_flavour(events, jets.event, eta, phi, data_set.radius)
        keep &= (flavour == kind.label) & (np.diff(jets.offsets) > 0)
    chosen = padded(jets.select(keep), candidates, data_set.padding)
    return replace(chosen, truth=vertices(events, final, chosen)) if data_set.flavour else chosen


def _good_tracks(particles: Particles, candidates: Candidates) -> NDArray[np.bool_]:
    """(T,) the tracks that a jet is tagged with."""
    made = np.hypot(*particles.vertex[:, :2].T)[candidates.source]
    good = (candidates.source >= 0) & (made < MAX_TRACK_RADIUS)
    return good & (np.hypot(*candidates.p[:, :2].T) > MIN_TRACK_PT)


def vertices(events: Events, final: NDArray[np.int64], jets: PaddedJets) -> dict[str, NDArray]:
    """The truth of jets' tracks.

    Args:
        final: (F,) rows of the events that ``jets.source`` counts.

    Returns:
        ``vertex`` (M, P) number of each track's vertex in its jet, 0 for the primary, and
        ``origin`` (M, P), see ``truth.Origins``, both 255 without a track; ``vertices``
        (M, P + 1, 3) their positions in mm, ``hadron`` (M, P + 1) what decayed there and
        ``proper_length`` (M, P + 1) c times its proper time in mm, zeros where there is none.
    """
    mask = jets.source >= 0
    found = find_origins(events, final[jets.source[mask]])
    owner = np.nonzero(mask)[0]
    number = number_vertices(owner, found.point)
    shape = (len(jets), jets.source.shape[1])
    truth = {
        "vertex": np.full(shape, NO_TRUTH, np.uint8),
        "origin": np.full(shape, NO_TRUTH, np.uint8),
        "vertices": np.zeros((shape[0], shape[1] + 1, 3), np.float32),
        "hadron": np.zeros((shape[0], shape[1] + 1), np.int32),
        "proper_length": np.zeros((shape[0], shape[1] + 1), np.float32),
    }
    truth["vertex"][mask], truth["origin"][mask] = number, found.kind
    per_vertex = {"vertices": found.point, "hadron": found.hadron, "proper_length": found.proper}
    for name, values in per_vertex.items():
        truth[name][owner, number] = values
    return truth


def _veto_limits(data_set: DataSet) -> dict[str, float]:
    return {
        "min_pt": data_set.jet_pt[0] - VETO_PT_SLACK,
        "max_eta": data_set.jet_eta + VETO_ETA_SLACK,
        "spread": data_set.radius + VETO_SPREAD_SLACK,
    }


def _veto(data_set: DataSet, kind: Kind) -> HardProcessVeto | None:
    if not (data_set.veto and kind.targets):
        return None
    return HardProcessVeto(kind.targets, **_veto_limits(data_set))


def write_omnilearned(file: h5py.File, jets: PaddedJets, data_set: DataSet, kind: Kind) -> None:
    """OmniLearned's layout: ``data``, ``pid`` (the jet's label!), ``global``; and the counts."""
    columns: list[NDArray] = [jets.features]
    if data_set.tracks:
        tracks = jets.tracks.copy()
        tracks[..., (0, 2)] = np.tanh(tracks[..., (0, 2)])
        columns += [jets.pid[..., None], tracks]
    file["data"] = np.concatenate(columns, axis=-1).astype(np.float32)
    file["pid"] = np.full(len(jets), kind.label + data_set.label_shift, np.int64)
    file["global"] = np.column_stack([jets.jets, jets.count / 100]).astype(np.float32)
    file["global"].attrs["columns"] = GLOBAL_COLUMNS
    file["num_particles"] = jets.count.astype(np.int32)
    for name, values in jets.truth.items():
        file[name] = values
    file.attrs["label_shift"] = data_set.label_shift


def write_jetnet(file: h5py.File, jets: PaddedJets, data_set: DataSet, kind: Kind) -> None:
    """JetNet's layout: eta, phi and pT relative to the jet, and a mask."""
    mask = jets.mask
    features = np.zeros((*mask.shape, 4))
    features[..., :2] = jets.features[..., :2]
    features[..., 2] = np.where(mask, np.exp(jets.features[..., 2]), 0) / jets.jets[:, None, 0]
    features[..., 3] = mask
    file["particle_features"] = features.astype(np.float32)
    summary = np.column_stack([jets.jets[:, [0, 1, 3]], jets.count])
    file["jet_features"] = summary.astype(np.float32)
