"""One declaration of an op in ``torch.ops``: its backward and registrations follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jetkern.packed import plainly_eager


def operator(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    forward: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    gradients: str = "",
    kept: str = "",
    reference: Callable[..., Tensor] | None = None,
    devices: Sequence[str] = ("cpu",),
) -> Any:
    """Registers an op and, if it is differentiable, its backward ``<name>_backward``.

    The first result is the op's; others are what the forward keeps for the backward. The backward
    takes the gradient of the result, all inputs in their order, the kept results and the flags
    ``bool want_<input>``; it returns one gradient for each differentiable input, that of a
    ``Tensor[]`` (the only one, if any) as one row, tensor after tensor. For an input that is None
    or whose flag is false it returns an empty row.

    Args:
        name: "namespace::op". schema: inputs and results, as for ``torch.library.define``.
        fake: shapes of the results, from the inputs.
        forward, backward: implementations on ``devices``; None where C++ registers them.
        gradients: names of the differentiable inputs; with a "?" behind one its gradient is
            computed only if it is wanted, and the backward gets its flag.
        kept: names of the results that the backward gets.
        reference: the result in plain PyTorch from the same inputs. Where derivatives of the
            gradient are wanted (``create_graph=True``) the gradient is that of the reference.

    Returns:
        What calls ``torch.ops.<namespace>.<op>.default``, or, where nothing traces or transforms,
        its implementation with the same backward.
    """
    torch.library.define(name, schema)
    torch.library.register_fake(name, _without_tangents(name, fake))
    if forward is not None:
        torch.library.impl(name, devices, forward)
    op = _find(name)
    if not gradients:
        return op

    read = _Arguments(name, schema, gradients, kept, reference)
    torch.library.define(f"{name}_backward", read.backward_schema)
    torch.library.register_fake(f"{name}_backward", read.fake_backward)
    if backward is not None:
        torch.library.impl(f"{name}_backward", devices, backward)
    run_backward = _find(f"{name}_backward")

    def gradient(ctx: Any, d_out: Tensor | None, *_: None) -> tuple[Any, ...]:
        return tuple(read.gradients(ctx, d_out, ctx.needs_input_grad, run_backward, _divided))

    torch.library.register_autograd(
        name, gradient, setup_context=lambda ctx, inputs, output: read.keep(ctx, inputs, output)
    )

    def compute(*arguments: Any) -> Any:
        if forward is not None:
            return forward(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    return _eager(op, read, compute, backward or run_backward, devices)


class _Arguments:
    """What a schema says of an op's arguments, and what its backward needs of them.

    Attributes:
        of: places of the inputs with a gradient; asked: of those whose flag the backward gets.
        back: of the results that are kept for it.
        single, several: of the inputs that are tensors, and of the one that is a list of them.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        gradients: str,
        kept: str,
        reference: Callable[..., Tensor] | None,
    ) -> None:
        signature = torch._C.parse_schema(name + schema)
        inputs = [a.name for a in signature.arguments]
        types = [str(a.type) for a in signature.arguments]
        results = [r.name for r in signature.returns]
        self.name, self.reference = name, reference
        self.count, self.results = len(inputs), len(results)
        self.of = [inputs.index(g.rstrip("?")) for g in gradients.split()]
        self.asked = [inputs.index(g[:-1]) for g in gradients.split() if g.endswith("?")]
        self.back = [results.index(k) for k in kept.split()]
        self.single = [i for i, t in enumerate(types) if t in ("Tensor", "Optional[Tensor]")]
        self.several = next((i for i, t in enumerate(types) if t == "List[Tensor]"), None)
        declared = schema[schema.index("(") + 1 : schema.rindex("->")].strip().removesuffix(")")
        extra = [f"Tensor {results[i]}" for i in self.back]
        extra += [f"bool want_{inputs[i]}" for i in self.asked]
        made = ", ".join(f"Tensor d_{inputs[i]}" for i in self.of)
        self.backward_schema = f"(Tensor d_out, {', '.join([declared, *extra])}) -> ({made})"

    def fake_backward(self, d_out: Tensor, *arguments: Any) -> Any:
        flags = arguments[self.count + len(self.back) :]
        wanted = dict(zip(self.asked, flags, strict=True))

        def empty(i: int) -> Tensor:
            value = arguments[i]
            if value is None or not wanted.get(i, True):
                return d_out.new_empty(0)
            if i == self.several:
                return value[0].new_empty(sum(t.numel() for t in value))
            return value.new_empty(value.shape)

        found = tuple(empty(i) for i in self.of)
        return found if len(found) > 1 else found[0]

    def tensors(self, arguments: Sequence[Any]) -> list[Tensor | None]:
        """Those that are or hold tensors, one by one, the list's last."""
        found = [arguments[i] for i in self.single]
        return found if self.several is None else [*found, *arguments[self.several]]

    def keep(self, ctx: Any, arguments: Sequence[Any], output: Any) -> None:
        """Saves for the backward: single tensors, kept results, the tensors of the list."""
        ctx.set_materialize_grads(False)
        if self.results > 1:
            ctx.mark_non_differentiable(*output[1:])
        ctx.others = [
            None if i in self.single or i == self.several else v for i, v in enumerate(arguments)
        ]
        ctx.save_for_backward(
            *(arguments[i] for i in self.single),
            *(output[i] for i in self.back),
            *(arguments[self.several] if self.several is not None else ()),
        )

    def gradients(
        self, ctx: Any, d_out: Tensor | None, wanted: Sequence[bool], run: Any, divide: Any
    ) -> list[Any]:
        """One for each input, None where there is none; a list for the list."""
        given: list[Any] = [None] * self.count
        if d_out is None:
            return given
        saved, arguments = ctx.saved_tensors, ctx.others.copy()
        for i, value in zip(self.single, saved, strict=False):
            arguments[i] = value
        first, last = len(self.single), len(self.single) + len(self.back)
        if self.several is not None:
            arguments[self.several] = saved[last:]
        if torch.is_grad_enabled():
            return _through_reference(self.name, self.reference, arguments, self.of, d_out)
        flags = (wanted[i] for i in self.asked)
        found = run(d_out.contiguous(), *arguments, *saved[first:last], *flags)
        for i, one in zip(self.of, found if len(self.of) > 1 else (found,), strict=True):
            if i == self.several:
                given[i] = divide(one, arguments[i])
            elif wanted[i]:
                given[i] = one
        return given


def _eager(
    op: Any, read: _Arguments, compute: Any, backward: Any, devices: Sequence[str]
) -> Callable[..., Any]:
    """What calls ``op``, past the dispatcher where nothing traces or transforms.

    The same result and backward; it takes 50 to 100 us a call less.
    """

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, arguments: Sequence[Any], *_: Tensor) -> Any:
            output = compute(*arguments)
            read.keep(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, d_out: Tensor | None, *_: None) -> tuple[Any, ...]:
            needed = ctx.needs_input_grad[1:]
            wanted = [False] * read.count
            for i, need in zip(read.single, needed, strict=False):
                wanted[i] = need
            # the same as _divided in C++, for sizes that are known
            divide = torch._C._nn.unflatten_dense_tensors
            given = read.gradients(ctx, d_out, wanted, backward, divide)
            listed = () if read.several is None else given[read.several] or ()
            rest = len(needed) - len(read.single) - len(listed)
            return None, *(given[i] for i in read.single), *listed, *[None] * rest

    Direct.__name__ = Direct.__qualname__ = read.name.replace("::", "_")

    def call(*arguments: Any) -> Any:
        if not plainly_eager():
            return op(*arguments)
        needed = False
        tensors = read.tensors(arguments)
        for t in tensors:
            if t is not None:
                if type(t) not in PLAIN or t.device.type not in devices:
                    return op(*arguments)
                needed = needed or t.requires_grad
        if needed and torch.is_grad_enabled():
            return Direct.apply(arguments, *tensors)
        return compute(*arguments)

    return call


def _divided(row: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that lie one after the other in ``row``."""
    parts = row.split([t.numel() for t in like])
    return [p.view(t.shape) for p, t in zip(parts, like, strict=True)]


PLAIN = (Tensor, torch.nn.Parameter)


def _find(name: str) -> Any:
    namespace, _, op = name.partition("::")
    return getattr(getattr(torch.ops, namespace), op).default


def _without_tangents(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """``fake``, an error where forward-mode derivatives are traced: they would be lost."""

    def checked(*inputs: Any) -> Any:
        if forward_ad._current_level >= 0:
            raise RuntimeError(f"{name} has no forward-mode derivatives: take backend='reference'")
        return fake(*inputs)

    return checked


def _through_reference(
    name: str,
    reference: Callable[..., Tensor] | None,
    arguments: list[Any],
    of: Sequence[int],
    d_out: Tensor,
) -> list[Any]:
    """The gradients of the reference, which can be differentiated again."""
    if reference is None:
        raise RuntimeError(f"{name} has no second derivatives: take backend='reference'")

    def own(value: Any) -> Any:
        """An input under a name of its own, as it may have been given more than once."""
        if isinstance(value, Tensor):
            return value.view_as(value)
        return [own(v) for v in value] if isinstance(value, (list, tuple)) else value

    with torch.enable_grad():
        values = [own(v) for v in arguments]
        out = reference(*values)
        leaves = [
            v for i in of for v in (values[i] if isinstance(values[i], list) else [values[i]])
        ]
        leaves = [v for v in leaves if v is not None and v.requires_grad]
        found = iter(torch.autograd.grad(out, leaves, d_out, create_graph=True, allow_unused=True))

    def taken(value: Any) -> Any:
        if isinstance(value, list):
            return [taken(v) for v in value]
        return next(found) if value is not None and value.requires_grad else None

    return [taken(v) if i in of else None for i, v in enumerate(values)]
