"""Work on a GPU that is recorded once and replayed: CUDA graphs.

What is recorded reads and writes the same memory at every replay. ``Recorder`` is what records: a
CUDA graph on a GPU, and for tests anything that does the work when it is replayed.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jetkern.fillers import Buffers, buckets, filled, sizes_of
from jetkern.jets import Jets
from jetkern.kept import holding
from jetkern.model.pet import PET

Recorder = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]


def cuda_graph(work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """What the work returns, and what replays it.

    The work has run before, so that kernels are compiled and constants are made.

    Raises:
        RuntimeError: for work that waits for the GPU.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads go on with calls that only their own recording would forbid: the one that reads
    # ahead takes page-locked memory, NCCL's asks for events.
    with holding() as constants, torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()
    return result, functools.partial(_replay, graph, constants)


def _replay(graph: torch.cuda.CUDAGraph, constants: list[Tensor]) -> None:
    """``constants``, which the graph reads, live as long as what replays it."""
    graph.replay()


class Captured:
    """Inference of a model by CUDA graphs, one for each of a few sizes; plain where there is none.

    A batch is filled up to a size that was recorded before (``jetkern.fillers``). Weights may
    change between calls, in their places. Results are those of the model's methods.

    Attributes:
        plain: calls that ran without a graph: not on a GPU, or of jets that fit no size.

    Args:
        model: in evaluation mode, on the device to use.
        most: graphs that are kept, each with the memory of a pass; that used longest ago goes.
        record: what records; by default CUDA graphs, on a GPU.
    """

    def __init__(self, model: PET, *, most: int = 16, record: Recorder | None = None) -> None:
        self.model, self.most = model, most
        self.device = next(model.parameters()).device
        self.record = record or (cuda_graph if self.device.type == "cuda" else None)
        self.plain = 0
        self._kept: OrderedDict[Any, tuple[Buffers, Tensor | None, Tensor, Any]] = OrderedDict()

    @torch.no_grad()
    def classify(self, jets: Jets) -> Tensor:
        """(B, num_classes) logits, as ``PET.classify``; jets on the CPU."""
        return self._run("classify", jets, None, len(jets))

    @torch.no_grad()
    def embed(self, jets: Jets) -> Tensor:
        """(B, G, D) global tokens behind the body; jets on the CPU."""
        return self._run("tokens", jets, None, len(jets))

    @torch.no_grad()
    def velocity(self, jets: Jets, time: Tensor) -> Tensor:
        """(T, 4) as ``PET.velocity``; jets and time on the CPU."""
        return self._run("velocity", jets, time, len(jets.particles))

    def _call(self, name: str, jets: Jets, time: Tensor | None) -> Tensor:
        if name == "tokens":
            rows, offsets = self.model.body(jets)
            place = torch.arange(self.model.config.global_tokens, device=rows.device)
            return rows[offsets[:-1, None] + place]
        result: Tensor = getattr(self.model, name)(jets, *(() if time is None else (time,)))
        return result

    def _run(self, name: str, jets: Jets, time: Tensor | None, rows: int) -> Tensor:
        full = None if self.record is None else self._filled(jets)
        if full is None:
            self.plain += 1
            there = None if time is None else time.to(self.device)
            return self._call(name, jets.to(self.device), there)
        if time is not None:
            time = torch.cat([time, time.new_zeros(full.fillers, *time.shape[1:])])
        fields = tuple(n for n in ("pid", "tracks", "condition", "label") if _has(full, n))
        shape = None if time is None else time.shape
        key = name, len(full), len(full.particles), full.num_pairs, fields, shape
        kept = self._kept.get(key)
        if kept is None:
            kept = self._recorded(name, full, time)
            self._kept[key] = kept
            if len(self._kept) > self.most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        buffers, place, result, replay = kept
        buffers.take(full)
        if place is not None and time is not None:
            place.copy_(time, non_blocking=True)
        replay()
        return result[:rows].clone()

    def _recorded(self, name: str, full: Jets, time: Tensor | None) -> Any:
        assert self.record is not None
        buffers = Buffers(full, self.device)
        place = None if time is None else time.to(self.device, copy=True)
        self._call(name, buffers.jets(), place)  # compiles kernels, makes constants
        jets = buffers.jets()
        result, replay = self.record(lambda: self._call(name, jets, place))
        return buffers, place, result, replay

    def _filled(self, jets: Jets) -> Jets | None:
        counts = jets.packed.known_counts
        if counts is None and jets.offsets.is_cpu:
            counts = jets.counts.numpy()
        if counts is None or not len(jets) or not jets.particles.is_cpu:
            return None
        found = (filled(jets, capacity) for capacity in buckets(sizes_of(counts)))
        return next((full for full in found if full is not None), None)


def _has(jets: Jets, name: str) -> bool:
    return getattr(jets, name) is not None
