"""The weights of a model in one buffer, so that what is done to all of them is done at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jetkern.io import printable
from jetkern.kernels import Kernel, kernel

ALIGNED = 16  # elements: where a weight begins, so that kernels read it in whole vectors


def row_kernel(name: str, *tensors: Tensor) -> Kernel | None:
    """The kernel of that name, if there is one and all of these are rows that it takes."""
    plain = all(t.dtype == torch.float32 and t.dim() == 1 and t.is_contiguous() for t in tensors)
    return kernel(name, tensors[0]) if plain else None


class Place(NamedTuple):
    """Of a parameter in a buffer: its number in its optimiser, first element, length, shape."""

    number: int
    first: int
    length: int
    shape: torch.Size

    def of(self, buffer: Tensor) -> Tensor:
        """The parameter's part of a buffer."""
        return buffer[self.first : self.first + self.length].view(self.shape)


class FlatParameters:
    """Parameters moved into one buffer, group after group; they become views of it.

    Casts, norms, updates, averages and sums over processes are then each one pass over one tensor.
    An optimiser gets one parameter for each group (``groups``). Its state is saved as that of the
    single parameters, which is independent of this layout: ``split`` and ``joined``.

    Args:
        groups: of parameters, as from ``parameter_groups``, all on one device and of one dtype.

    Attributes:
        parameters: in the order of the buffer.
        values: (N,) the buffer.
        groups: the same settings, each with its part of the buffer as its only parameter.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.parameters: list[nn.Parameter] = []
        self._places: list[list[Place]] = []  # by group, in the order of the given parameters
        self._gaps: list[int] = []  # behind the parameters of each group
        self._bounds = [0]
        number = 0
        for group in groups:
            members = list(enumerate(group["params"], number))
            number += len(members)
            # Those of odd lengths come last: the others then begin where vectors do.
            members.sort(key=lambda member: member[1].numel() % ALIGNED != 0)
            places, end = [], self._bounds[-1]
            for index, p in members:
                places.append(Place(index, end, p.numel(), p.shape))
                end += p.numel()
                self.parameters.append(p)
            self._gaps.append(-end % ALIGNED)
            self._bounds.append(end + self._gaps[-1])
            self._places.append(sorted(places))
        self.values = self.row([p.detach() for p in self.parameters])
        for p, place in zip(self.parameters, self._in_order(), strict=True):
            p.data = place.of(self.values)
        self.groups = [
            {**group, "params": [nn.Parameter(part)]}
            for group, part in zip(groups, self._parts(self.values), strict=True)
        ]

    def row(self, tensors: Sequence[Tensor]) -> Tensor:
        """(N,) of one tensor for each of ``parameters``, laid out as the buffer is."""
        parts: list[Tensor] = []
        first = 0
        for places, gap in zip(self._places, self._gaps, strict=True):
            parts += tensors[first : first + len(places)]
            first += len(places)
            if gap:
                parts.append(parts[-1].new_zeros(gap))
        if not parts:
            return torch.zeros(0)
        flat: Tensor = torch._C._nn.flatten_dense_tensors(parts)
        return flat

    def set_gradient(self, gradient: Tensor) -> None:
        """Makes (N,) the gradient of the groups' parameters."""
        for group, part in zip(self.groups, self._parts(gradient), strict=True):
            group["params"][0].grad = part

    def split(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimiser of ``groups`` as one of the parameters themselves.

        Its tensors are copies. Of a ``Lookahead`` the slow weights too.
        """
        if "slow" in state:
            slow = [
                place.of(buffer).clone()
                for places, buffer in zip(self._relative(), state["slow"], strict=False)
                for place in places
            ]
            return {**state, "optimizer": self.split(state["optimizer"]), "slow": slow}
        groups: list[dict[str, Any]] = []
        of_parameters: dict[int, dict[str, Any]] = {}
        for group, places in zip(state["param_groups"], self._relative(), strict=True):
            groups.append({**group, "params": [place.number for place in places]})
            values = state["state"].get(group["params"][0])
            for place in places if values is not None else ():
                of_parameters[place.number] = {
                    name: (place.of(v) if v.ndim else v).clone() if isinstance(v, Tensor) else v
                    for name, v in values.items()
                }
        return {**state, "state": of_parameters, "param_groups": groups}

    def joined(self, state: dict[str, Any]) -> dict[str, Any]:
        """The way back from ``split``.

        Raises:
            ValueError: for tensors of other shapes than the parameters', or values that differ from
                parameter to parameter.
            KeyError, TypeError: for what is no such state.
        """
        if "slow" in state:
            numbered = dict(enumerate(state["slow"]))
            rows = [_row("slow", p, numbered) for p in self._relative()] if numbered else []
            return {**state, "optimizer": self.joined(state["optimizer"]), "slow": rows}
        groups: list[dict[str, Any]] = []
        of_groups: dict[int, dict[str, Any]] = {}
        if len(state["param_groups"]) != len(self._places):
            raise ValueError("the optimiser has another number of groups")
        for i, (group, places) in enumerate(
            zip(state["param_groups"], self._relative(), strict=True)
        ):
            if list(group["params"]) != [place.number for place in places]:
                raise ValueError("the optimiser's groups have other parameters")
            groups.append({**group, "params": [i]})
            values = [state["state"][place.number] for place in places if state["state"]]
            if len({tuple(v) for v in values}) > 1:
                raise ValueError("the optimiser has different values for different parameters")
            for name in values[0] if values else ():
                numbered = {p.number: v[name] for p, v in zip(places, values, strict=True)}
                of_groups.setdefault(i, {})[name] = _row(name, places, numbered)
        return {**state, "state": of_groups, "param_groups": groups}

    def _parts(self, buffer: Tensor) -> list[Tensor]:
        return [buffer[a:b] for a, b in zip(self._bounds, self._bounds[1:], strict=False)]

    def _in_order(self) -> list[Place]:
        return [p for places in self._places for p in sorted(places, key=lambda p: p.first)]

    def _relative(self) -> list[list[Place]]:
        """The places in each group's own part."""
        return [
            [place._replace(first=place.first - start) for place in places]
            for places, start in zip(self._places, self._bounds, strict=False)
        ]


def _row(name: str, places: Sequence[Place], values: dict[int, Any]) -> Any:
    """What a group has in place of its parameters' ``values``: one row, or their common number."""
    widest = max(places, key=lambda place: len(place.shape))
    first = values[widest.number]
    if not isinstance(first, Tensor) or (not first.ndim and (widest.shape or name == "step")):
        if any(bool(values[place.number] != first) for place in places):
            raise ValueError("the optimiser has different values for different parameters")
        return first
    end = max(place.first + place.length for place in places)
    row = first.new_zeros(end + -end % ALIGNED)
    for place in places:
        value = values[place.number]
        if not isinstance(value, Tensor) or value.shape != place.shape:
            raise ValueError(f"the optimiser's {printable(name)} does not fit its parameter")
        place.of(row).copy_(value)
    return row
