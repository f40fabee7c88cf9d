"""Tokens of jets, one after the other: a decoder trained on for other jets, and how well it knows
them (as from Aspen Open Jets to JetClass, arXiv 2412.10504)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jetkern.data import Shards
from jetkern.evaluation.classify import ask, load_part
from jetkern.jets import Jets
from jetkern.metrics.classification import Estimate, as_json
from jetkern.model.jet_decoder import NEXT_TOKEN, JetDecoder, JetDecoderConfig
from jetkern.tables import table
from jetkern.tasks.task import Task, register
from jetkern.training.config import EvaluateSettings, FinetuneSettings
from jetkern.training.data import check_same
from jetkern.training.weights import load_weights


@dataclass(frozen=True)
class TokenReport:
    """How well a model knows the tokens of jets, in nats per particle.

    Attributes:
        jets, particles: how many.
        nats: -ln p of all tokens and ends, with the error of the finite sample of jets.
        codes, ends: the parts of it.
        frequencies: what the frequencies of codes and ends in these jets alone reach.
    """

    jets: int
    particles: int
    nats: Estimate
    codes: float
    ends: float
    frequencies: float


@register
class NextToken(Task):
    """All comes from the checkpoint, but for the head of tokens of one that was a classifier."""

    name = NEXT_TOKEN
    configs = (JetDecoderConfig,)

    def config(self, base: Any, train: Shards, settings: FinetuneSettings) -> Any:
        return replace(base, parts=(NEXT_TOKEN,))

    def check(self, run: Path, shards: Shards, settings: EvaluateSettings) -> None:
        model, weights = load_part(run, NEXT_TOKEN), load_weights(run)
        for name in model.config.fields:
            if shards.field(name) is None:
                raise ValueError(f"{weights.path} reads {name}, which {shards.folder} lacks")
        check_same(weights.data, shards, model.config.fields, str(weights.path))

    def judge(
        self,
        run: Path,
        shards: Shards,
        settings: EvaluateSettings,
        device: torch.device,
        label: str,
    ) -> TokenReport:
        model = load_part(run, NEXT_TOKEN, device)
        used = torch.zeros(model.config.classes[0] + 1, dtype=torch.int64, device=device)
        found, _ = ask(
            model,
            shards,
            lambda jets: _per_jet(model, jets, used),
            lambda jets: None,
            batch_size=settings.batch_size,
            num_jets=settings.num_jets,
            seed=settings.seed,
            label=label,
        )
        return _report(found, used.double().cpu().numpy())

    def table(self, reports: Mapping[str, TokenReport]) -> str:
        rows: list[list[object]] = [["model", "nats per particle", "codes", "ends", "frequencies"]]
        for name, r in reports.items():
            parts = (f"{value:.4f}" for value in (r.codes, r.ends, r.frequencies))
            rows.append([name, f"{r.nats:.4f}", *parts])
        return table(rows, "lrrrr", markdown=True)

    def record(self, report: TokenReport) -> dict[str, Any]:
        return as_json(report)


def _per_jet(model: JetDecoder, jets: Jets, used: Tensor) -> Tensor:
    """(B, 3) particles, nats of their codes and of the end of each jet; what comes next is counted
    in ``used`` (K + 1,)."""
    read = model.read(jets)
    target = read.targets[:, 0]
    nats = model.body.target_losses(read.x, read.targets)[:, 0].double()
    ends = target == len(used) - 1
    used += torch.bincount(target, minlength=len(used))
    columns = torch.stack([(~ends).double(), nats.masked_fill(ends, 0), nats * ends], 1)
    return torch.segment_reduce(columns, "sum", offsets=read.packed.offsets, initial=0.0)


def _report(each: NDArray[np.float64], used: NDArray[np.float64]) -> TokenReport:
    """Of (N, 3) numbers of each jet, and (K + 1,) how often what came next."""
    particles, codes, ends = each.sum(0)
    number = max(float(particles), 1.0)
    nats = float(codes + ends) / number
    spread = each[:, 1] + each[:, 2] - nats * each[:, 0]  # of a ratio of sums, to first order
    shares = used[used > 0] / used.sum()
    return TokenReport(
        jets=len(each),
        particles=int(particles),
        nats=Estimate(nats, math.sqrt(np.square(spread).sum()) / number),
        codes=float(codes) / number,
        ends=float(ends) / number,
        frequencies=float(-(shares * np.log(shares)).sum() * used.sum()) / number,
    )
