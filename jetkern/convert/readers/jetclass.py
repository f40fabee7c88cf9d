"""JetClass ROOT files (arXiv 2202.03772, Zenodo 6619768): the tree ``tree``, one jet per entry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jetkern.convert.readers import (
    JETCLASS,
    BaseSource,
    InputError,
    Layout,
    Options,
    Raw,
    relative_kinematics,
    track_columns,
    without_momentum,
)
from jetkern.convert.readers.pid import from_flags
from jetkern.convert.readers.root import Tree, common_counts, has_branches

NAME = "jetclass"
SUFFIXES = (".root",)
LOOKS_FOR = "a ROOT tree called tree with part_px and label_QCD"
TREE = "tree"
CONDITION = ("jet_pt", "jet_eta", "jet_phi", "jet_mass", "multiplicity/100")

_LABELS = tuple(f"label_{name}" for name in JETCLASS)
_MOMENTUM = ("part_px", "part_py", "part_pz", "part_energy")
_FLAGS = (
    "part_charge",
    "part_isChargedHadron",
    "part_isNeutralHadron",
    "part_isPhoton",
    "part_isElectron",
    "part_isMuon",
)
_TRACKS = ("part_d0val", "part_d0err", "part_dzval", "part_dzerr")
_JET = ("jet_pt", "jet_eta", "jet_phi", "jet_energy")


def recognises(path: Path) -> bool:
    """Whether there is such a tree."""
    return has_branches(path, TREE, ("part_px", "label_QCD"))


def open_source(path: Path, options: Options) -> JetClass:
    """The opened file."""
    return JetClass(path, options)


class JetClass(BaseSource):
    """One file. Relative coordinates are those of the momenta and the jet's axis; the file's own
    ``part_deta`` is not used, since its sign follows the sign of the jet's eta."""

    def __init__(self, path: Path, options: Options) -> None:
        self.tree = Tree(path, TREE, (*_MOMENTUM, *_FLAGS, *_TRACKS, *_JET, *_LABELS))
        classes = options.classes or JETCLASS
        layout = Layout(classes=classes, pid=True, tracks=True, condition=CONDITION)
        self.scale = options.tracks
        super().__init__(path, self.tree.num_jets, layout)

    def read(self, start: int, stop: int) -> Raw:
        """The jets ``start`` to ``stop - 1``."""
        values, counts_of = self.tree.read(
            (*_MOMENTUM, *_FLAGS, *_TRACKS, *_JET, *_LABELS), start, stop
        )
        counts = common_counts(self.path, counts_of, start)
        one_hot = np.stack([values[name] for name in _LABELS], axis=1)
        label = one_hot.argmax(axis=1)
        wrong = (one_hot.sum(axis=1) != 1) | (one_hot.max(axis=1) != 1)
        if wrong.any():
            jet = int(np.argmax(wrong))
            raise InputError(
                f"{self.path}: jet {start + jet}: label_*: exactly one label must be 1, found "
                f"{one_hot[jet].tolist()}"
            )
        owner = np.repeat(np.arange(len(counts)), counts)
        pt, eta, phi, energy = (values[name].astype(np.float64) for name in _JET)
        px, py, pz, particle_energy = (values[name] for name in _MOMENTUM)
        momentum2 = (pt * np.cosh(eta)) ** 2
        tracks, tally = track_columns(
            [values[name].astype(np.float32) for name in _TRACKS], self.scale
        )
        return Raw(
            counts=counts,
            particles=relative_kinematics(px, py, pz, particle_energy, eta[owner], phi[owner]),
            label=label,
            pid=from_flags(*(values[name] for name in _FLAGS)),
            tracks=tracks,
            skip=without_momentum(px, py),
            tally=tally,
            condition=np.stack(
                [pt, eta, phi, np.sqrt(np.maximum(energy**2 - momentum2, 0)), counts / 100], axis=1
            ),
        )

    def close(self) -> None:
        """Closes the file."""
        self.tree.close()
