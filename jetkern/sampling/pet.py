"""The velocity of a Point-Edge Transformer, with all that is the same at every step done once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetkern.jets import Jets, join_segments, last_rows, segment_index
from jetkern.model.columns import parted
from jetkern.model.pet import PET
from jetkern.sampling.sampler import SamplingError, Steps
from jetkern.sampling.solvers import FLOW_MAP


class PETVelocity:
    """``model.velocity`` for ``jetkern.sampling.sample``.

    Args:
        model: with a generator, in evaluation mode.

    Raises:
        SamplingError: for a model that cannot generate: without a generator, or one that embeds
            identities or tracks, which are not generated.
    """

    def __init__(self, model: PET) -> None:
        if model.generator is None:
            raise SamplingError(
                f"this model has no generator, only {', '.join(model.config.parts)}"
            )
        for name in ("pid", "tracks"):
            if getattr(model.config, f"use_{name}"):
                raise SamplingError(f"this model embeds {name}, which it does not generate")
        self.model = model

    def __call__(self, jets: Jets, time: Tensor) -> Tensor:
        check_request(self.model.config, jets, time)
        return self.model.velocity(jets, time)

    def prepare(self, jets: Jets, times: Tensor) -> Steps:
        """Rows of tokens and types, their places and the time table; as ``Velocity`` says."""
        check_request(self.model.config, jets, times)
        body, generator = self.model.body, self.model.generator
        assert generator is not None
        table = body.embed_time(times)
        room = jets.particles.new_zeros(len(jets.particles), table.shape[1])
        tokens = body.token_rows(jets, table[:1].expand(len(jets), -1))
        rows, offsets = join_segments([*tokens, (room, jets.offsets)])
        particle_rows = last_rows(offsets, jets.offsets, len(jets.particles))
        time_rows = offsets[:-1] + body.config.global_tokens
        types = generator.type_rows(jets)
        all_rows, all_offsets = join_segments([*types, (torch.zeros_like(rows), offsets)])
        places = torch.arange(len(rows), device=rows.device)
        places += len(types) * (1 + segment_index(offsets, len(rows)))
        result_rows = places[particle_rows]

        def velocity(values: Tensor, k: int) -> Tensor:
            now = parted(jets, values)
            x = rows.index_copy(0, particle_rows, body.embed_particles(now, None, None))
            x = x.index_copy(0, time_rows, table[k].expand(len(time_rows), -1))
            x = body.mix(x, offsets, now)
            x = all_rows.index_copy(0, places, x)
            return generator.mix(x, all_offsets, result_rows)

        return velocity


def check_request(config: Any, jets: Jets, times: Tensor) -> None:
    """Makes sure that a model has learned to make such jets; looks at their types.

    Args:
        config: of the model; jets, times: to be made.

    Raises:
        SamplingError: naming what it has not learned.
    """
    if (times.dim() == 2) != bool(config.few_steps):
        raise SamplingError(
            f"{FLOW_MAP} and distilled models (finetune distill) go with each other only"
        )
    if config.condition_dim and (
        jets.condition is None or jets.condition.shape[1] != config.condition_dim
    ):
        given = "none" if jets.condition is None else str(jets.condition.shape[1])
        raise SamplingError(f"the model takes {config.condition_dim} conditions, given {given}")
    if config.num_classes > 1:
        if jets.label is None:
            raise SamplingError("the model needs the type of each jet as its label")
        if not config.label_drop and len(jets) and int(jets.label.min()) < 0:
            raise SamplingError(
                "this model has not been trained on jets without a type (--label-drop)"
            )
        if len(jets) and int(jets.label.max()) >= config.num_classes:
            raise SamplingError(
                f"type {int(jets.label.max())} is unknown: the model has types 0 to "
                f"{config.num_classes - 1}"
            )
