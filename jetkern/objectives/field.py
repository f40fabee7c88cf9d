"""The losses of a velocity field that has no body, such as EPiC: it sees each view by itself."""

from __future__ import annotations

from jetkern.jets import Jets
from jetkern.model.epic import EPiC
from jetkern.objectives.objective import Objective
from jetkern.objectives.views import MakeView, View, index_of


class FieldObjective(Objective):
    """``Objective`` of an ``EPiC``."""

    model: EPiC

    @property
    def fills(self) -> bool:
        """No: whether a GPU can record its sums over jets was never tried."""
        return False

    def _see(self, jets: Jets) -> dict[MakeView, View]:
        index = index_of(jets)
        made = {make: make(jets, index, self.seed) for make in self.views}
        told = self._told(jets, index)
        for view in made.values():
            view.told = told
        return made
