"""The likelihood of a decoder worked out step by step, from its weights alone."""

import math

import torch
from torch import Tensor

from jetkern.model.decoder import Decoder
from jetkern.model.streams import NARROWEST, MixtureHead


def nats_of(model: Decoder, x: Tensor, s: int, value: float, read: list[float]) -> Tensor:
    """-ln p of a value in stream s of a row, of the weights alone."""
    config = model.config
    if config.joint == "chain":
        for link, before, n in zip(model.links, read, config.classes, strict=False):
            x = x + link(
                torch.tensor([int(before)]) if n else torch.tensor([before], dtype=torch.float64)
            )
    if config.head_hidden:
        x = torch.nn.functional.gelu(model.hidden[s](x))
    head = model.heads[s]
    if not isinstance(head, MixtureHead):
        return -head(x)[0].log_softmax(-1)[int(value)]
    logits, means, raw = head.linear(x)[0].chunk(3)
    widths = torch.nn.functional.softplus(raw.clamp(-4, 4)) + NARROWEST
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits), torch.distributions.Normal(means, widths)
    )
    scale = config.scale[s] if config.scale else 1
    if head.bounds is not None:
        low, high = (torch.tensor(b, dtype=torch.float64) for b in head.bounds)
        value = min(max(value, float(low)), float(high))
        within = law.cdf(high) - law.cdf(low)
        return (
            within.log() - law.log_prob(torch.tensor(value, dtype=torch.float64)) - math.log(scale)
        )
    return -law.log_prob(torch.tensor(value, dtype=torch.float64)) - math.log(scale)


def by_steps(model: Decoder, points: Tensor, known: dict | None = None) -> Tensor:
    """-ln p of one set, row by row with keys and values kept, and the delays spelt out."""
    config, n, nats = model.config, len(points), torch.zeros((), dtype=torch.float64)
    values = points.double().clone()
    for s, classes in enumerate(config.classes):
        if not classes and config.scale:
            values[:, s] = (values[:, s] - config.shift[s]) * config.scale[s]
    context = model.known(**(known or {}))
    cache: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.blocks]

    def mixed(x: Tensor, rank: int) -> Tensor:
        for block, kept in zip(model.blocks, cache, strict=True):
            q, k, v = block.project(x, torch.tensor([rank]))
            kept.append((k[0], v[0]))
            shared = q.shape[1] // k.shape[1]
            keys, seen = (
                torch.stack(t).repeat_interleave(shared, 1) for t in zip(*kept, strict=True)
            )
            weights = (torch.einsum("hd,nhd->hn", q[0], keys) * q.shape[2] ** -0.5).softmax(-1)
            x = block.finish(x, torch.einsum("hn,nhd->hd", weights, seen)[None])
        return x if model.norm is None else model.norm(x)

    for rank in range(config.registers):
        mixed(model.registers[rank : rank + 1], rank)
    for row in range(n + max(config.delays[-1], 1)):
        inputs, due = [], []
        for s, (late, classes) in enumerate(zip(config.delays, config.classes, strict=True)):
            before, now = row - 1 - late, row - late
            inputs.append(float(values[before, s]) if 0 <= before < n else classes or math.nan)
            due.append(float(values[now, s]) if 0 <= now < n else None)
        if row == n and config.end == "token":
            due[0] = config.classes[0]
        x = model.embed(torch.tensor([inputs], dtype=torch.float64))
        x = mixed(x if context is None else x + context, config.registers + row)
        for s, value in enumerate(due):
            if value is not None:
                nats = nats + nats_of(model, x, s, value, due[:s])
        if model.end is not None and row <= n:
            logit = model.end.linear(x)[0, 0]
            nats = nats - torch.nn.functional.logsigmoid(logit if row == n else -logit)
    return nats
