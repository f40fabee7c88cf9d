"""One process or many: what ``torchrun`` says about this one, and the few collectives needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from jetkern.training.signals import end_with_launcher

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def copy(self, values: Tensor) -> None:
        """Makes ``values`` those of the main process, in every process."""
        if self.size > 1:
            dist.broadcast(values, src=0)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))))

    def share(self, value: T) -> T:
        """The main process's ``value``, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Joins the processes that ``torchrun`` started, or is alone without it.

    CPU tensors are reduced with gloo, CUDA tensors with NCCL. A process whose launcher is gone
    ends.

    Args:
        device: "auto" takes a GPU if there is one; "cuda" the one of this process's local rank.

    Raises:
        ValueError: for a device that is not there.
    """
    end_with_launcher()
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        if size > 1:
            dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """The device of that name, "auto" for a GPU if there is one.

    Raises:
        ValueError: for one that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
        if index >= count:
            raise ValueError(f"there is no device cuda:{index}; this machine has {count}")
        return torch.device("cuda", index)
    return device
