"""The velocity of an EPiC network, and the field of a model of either kind."""

from __future__ import annotations

from torch import Tensor

from jetkern.jets import Jets
from jetkern.model.columns import parted
from jetkern.model.epic import EPiC
from jetkern.model.pet import PET
from jetkern.sampling.pet import PETVelocity, check_request
from jetkern.sampling.sampler import SamplingError, Steps, Velocity


class EPiCVelocity:
    """``model.velocity`` for ``jetkern.sampling.sample``.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: EPiC) -> None:
        self.model = model

    def __call__(self, jets: Jets, time: Tensor) -> Tensor:
        check_request(self.model.config, jets, time)
        return self.model.velocity(jets, time)

    def prepare(self, jets: Jets, times: Tensor) -> Steps:
        """The checks, which look at values; as ``Velocity`` says."""
        check_request(self.model.config, jets, times)
        return lambda x, k: self.model.velocity(parted(jets, x), times[k].expand(len(jets)))


def field_of(model: object) -> Velocity:
    """The velocity field of a generator.

    Args:
        model: a ``PET`` or an ``EPiC``, in evaluation mode.

    Raises:
        SamplingError: for a model that cannot generate.
    """
    if isinstance(model, EPiC):
        return EPiCVelocity(model)
    if isinstance(model, PET):
        return PETVelocity(model)
    raise SamplingError(f"a {type(model).__name__} is no velocity field")
