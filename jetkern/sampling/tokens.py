"""Jets from a decoder of tokens and the tokeniser that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jetkern.jets import Jets
from jetkern.model.decoder import Decoder
from jetkern.model.jet_decoder import NEXT_TOKEN, JetDecoder
from jetkern.sampling.autoregressive import PLAIN, SLOTS, Drawing, generate
from jetkern.sampling.sampler import MAX_PARTICLES, SamplingError

KINEMATICS = ("delta_eta", "delta_phi", "ln_pt")


def check_draws_jets(model: JetDecoder) -> None:
    """Makes sure that ``generate_jets`` takes the model.

    Raises:
        SamplingError: for a classifier, rows that read features, or a tokeniser without
            kinematics.
    """
    if NEXT_TOKEN not in model.config.parts or type(model.body) is not Decoder:
        raise SamplingError("jets are drawn from decoders that read and predict tokens")
    if missing := [name for name in KINEMATICS if name not in model.config.features]:
        raise SamplingError(f"the tokeniser of this decoder does not read {', '.join(missing)}")


@torch.no_grad()
def generate_jets(
    model: JetDecoder,
    index: Tensor,
    *,
    seed: int,
    max_particles: int = MAX_PARTICLES,
    slots: int = SLOTS,
    drawing: Drawing | Sequence[Drawing] = PLAIN,
    progress: bool = False,
) -> tuple[Jets, Tensor]:
    """Draws the tokens of jets and says what these stand for.

    Particles are in the order in which they were drawn, that of the training jets. Without
    ln_energy among the tokeniser's features they are massless, of jets at eta 0.

    Args:
        model: trained to predict tokens, from tokens.
        index: (B,) int64 numbers of the jets, from 0.
        max_particles: of a jet; the others as for ``jetkern.sampling.generate``.

    Returns:
        The jets, and (B,) bool, true for those cut at ``max_particles``.

    Raises:
        SamplingError: as ``check_draws_jets`` and ``generate`` do.
    """
    check_draws_jets(model)
    points, packed, cut = generate(
        model.body, index, seed=seed, max_points=max_particles, slots=slots, drawing=drawing,
        progress=progress,
    )  # fmt: skip
    blank = Jets(
        particles=torch.zeros(len(points), 4, device=points.device),
        offsets=packed.offsets,
        index=index.to(points.device),
    )
    jets = model.tokenizer.reconstructed(blank, points[:, 0])
    if "ln_energy" not in model.config.features:
        jets.particles[:, 3] = jets.particles[:, 2] + jets.particles[:, 0].cosh().log()
    return jets, cut
