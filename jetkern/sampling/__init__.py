"""Jets from noise: solvers, grids and the sampler; and sets drawn from a decoder.

A velocity is any function of packed jets and times; a model is one. To sample from your own::

    from jetkern import Jets
    from jetkern.sampling import noise_jets, sample, with_evaluations

    def velocity(jets: Jets, time: torch.Tensor) -> torch.Tensor:
        return my_model(jets.particles, jets.offsets, jets.label, time)  # (T, 4), noise minus data

    start = noise_jets(torch.tensor([30, 150, 1]), seed=0, label=torch.tensor([0, 2, 4]))
    jets = sample(velocity, start, with_evaluations("midpoint", 24), progress=True)
    particles, mask = jets.to_padded()

From a decoder sets are drawn point by point::

    from jetkern.sampling import generate

    points, packed, cut = generate(decoder, torch.arange(1000), seed=0, max_points=128)
"""

from jetkern.sampling.autoregressive import SLOTS, Cache, Drawing, Generated, generate
from jetkern.sampling.epic import EPiCVelocity, field_of
from jetkern.sampling.fitting import Trajectory, fit, trajectory
from jetkern.sampling.pet import PETVelocity
from jetkern.sampling.sampler import (
    SamplingError,
    Velocity,
    guided,
    noise_jets,
    sample,
)
from jetkern.sampling.solvers import (
    FLOW_MAP,
    SOLVERS,
    Scheme,
    integrate,
    scheme,
    uniform_grid,
    with_evaluations,
)
from jetkern.sampling.tokens import check_draws_jets, generate_jets

__all__ = [
    "FLOW_MAP",
    "SLOTS",
    "SOLVERS",
    "Cache",
    "Drawing",
    "EPiCVelocity",
    "Generated",
    "PETVelocity",
    "SamplingError",
    "Scheme",
    "Trajectory",
    "Velocity",
    "check_draws_jets",
    "field_of",
    "fit",
    "generate",
    "generate_jets",
    "guided",
    "integrate",
    "noise_jets",
    "sample",
    "scheme",
    "trajectory",
    "uniform_grid",
    "with_evaluations",
]
