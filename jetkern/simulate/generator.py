"""Pythia events as flat numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from math import hypot

import awkward as ak
import numpy as np
import pythia8mc
from numpy.typing import NDArray

from jetkern.simulate import SimulationError
from jetkern.simulate.events import NEUTRINOS, Events


class HardProcessVeto(pythia8mc.UserHooks):
    """Drops an event before the shower if no target's visible products could make one jet.

    That is, unless they sum to pT > ``min_pt`` and abs(eta) < ``max_eta`` and lie within ``spread``
    of the sum. Shower and hadronisation take nearly all the time, so a dropped event is free.
    """

    def __init__(
        self, targets: tuple[int, ...], min_pt: float, max_eta: float, spread: float
    ) -> None:
        super().__init__()
        self.targets = targets
        self.min_pt = min_pt
        self.max_eta = max_eta
        self.spread = spread

    def canVetoProcessLevel(self) -> bool:
        return True

    def doVetoProcessLevel(self, process: pythia8mc.Event) -> bool:
        for i in range(process.size()):
            target = process[i]
            if target.idAbs() in self.targets and target.status() < 0:
                visible = list(self._visible(process, i))
                if not visible:
                    continue
                total = visible[0].p()
                for product in visible[1:]:
                    total += product.p()
                if (
                    total.pT() > self.min_pt
                    and abs(total.eta()) < self.max_eta
                    and all(self._distance(total, v.p()) < self.spread for v in visible)
                ):
                    return False
        return True

    def _visible(self, process: pythia8mc.Event, i: int) -> Iterator[pythia8mc.Particle]:
        for daughter in process[i].daughterList():
            if process[daughter].status() < 0:
                yield from self._visible(process, daughter)
            elif process[daughter].idAbs() not in NEUTRINOS:
                yield process[daughter]

    @staticmethod
    def _distance(a: pythia8mc.Vec4, b: pythia8mc.Vec4) -> float:
        dphi = abs(a.phi() - b.phi())
        return hypot(a.eta() - b.eta(), min(dphi, 2 * np.pi - dphi))


class Generator:
    """A Pythia instance that gives events in batches.

    Args:
        settings: ``name=value`` strings.
        seed: 1 to 900,000,000.
        veto: a hook on the hard process, or None.

    Raises:
        SimulationError: if Pythia rejects a setting or does not start.
    """

    def __init__(
        self, settings: tuple[str, ...], seed: int, veto: HardProcessVeto | None = None
    ) -> None:
        self.pythia = pythia8mc.Pythia("", False)
        self.veto = veto
        for setting in ("Print:quiet=on", "Random:setSeed=on", f"Random:seed={seed}", *settings):
            if not self.pythia.readString(setting):
                raise SimulationError(f"Pythia does not know the setting {setting!r}")
        if veto is not None:
            self.pythia.setUserHooksPtr(veto)
        if not self.pythia.init():
            raise SimulationError(f"Pythia did not start with the settings {', '.join(settings)}")
        self._charges: dict[int, float] = {}
        self.generated = 0

    def next(self, size: int) -> Events:
        """About ``size`` events: Pythia leaves out the ones that fail, so there may be fewer."""
        batch = self.pythia.nextBatch(size)
        self.generated += len(batch)
        layout = batch.prt.layout
        offsets = np.asarray(layout.offsets).astype(np.int64)
        rows = layout.content[offsets[0] : offsets[-1]]
        offsets -= offsets[0]
        first = np.repeat(offsets[:-1], np.diff(offsets))
        ids, status, daughter1, daughter2, mother, mass = (
            np.asarray(rows[name].data)
            for name in ("id", "status", "daughter1", "daughter2", "mother1", "m")
        )
        # Particles without a production vertex come from the origin.
        vertices = rows["vProd"].to_IndexedOptionArray64()
        which = np.asarray(vertices.index)
        vertex = np.zeros((len(ids), 3))
        vertex[which >= 0] = _columns(vertices.content, "px", "py", "pz")[which[which >= 0]]
        return Events(
            offsets=offsets,
            id=ids.astype(np.int64),
            status=status.astype(np.int64),
            daughter1=first + daughter1,
            daughter2=first + daughter2,
            mother=first + mother,
            p=_columns(rows["p"], "px", "py", "pz", "e"),
            mass=mass,
            vertex=vertex,
            charge=self._charge(ids),
        )

    def _charge(self, ids: NDArray[np.int64]) -> NDArray[np.floating]:
        codes, where = np.unique(ids, return_inverse=True)
        for code in codes.tolist():
            if code not in self._charges:
                self._charges[code] = self.pythia.particleData.chargeType(code) / 3
        return np.array([self._charges[code] for code in codes.tolist()])[where]

    def cross_section(self) -> tuple[float, float]:
        """Estimated cross-section and its uncertainty in pb, of the events that are not vetoed."""
        info = self.pythia.infoPython()
        return info.sigmaGen() * 1e9, info.sigmaErr() * 1e9


def _columns(record: ak.contents.RecordArray, *names: str) -> NDArray[np.float64]:
    return np.stack([np.asarray(record[name].data) for name in names], axis=1)
