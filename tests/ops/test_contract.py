"""What every op keeps, whatever computes it: derivatives, integers, transforms, names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jetkern import ops
from jetkern.ops import dispatch
from jetkern.packed import Packed
from tests.ops.helpers import (
    convert,
    generator,
    random_block,
    random_mlp,
    random_particles,
    triton_device,
)

COUNTS = [4, 0, 1, 6]
PARTICLES, OFFSETS = random_particles(COUNTS)
NEIGHBOURS = ops.knn(PARTICLES, OFFSETS, 3, backend="reference")
BLOCK, EMBED, PAIR = random_block(8, 12), random_mlp(7, 16, 8), random_mlp(3, 16, 2, norm=False)
BIAS = torch.randn(2, 53, generator=generator(1))
KEYS = torch.randn(2, 11, 2, 4, generator=generator(2))
LAYERS = [
    ops.LinearParameters(EMBED.fc1_weight[:5, :4], EMBED.fc1_bias[:5]),
    ops.LinearParameters(EMBED.fc2_weight[:2, :5], None),
]
CLASSES = torch.tensor([0, 3, 15, -1, 7, 7, 8, 2, -5, 1, 0])
FIRST, SECOND = ops.unordered_pairs(OFFSETS)
X, TANGENT = torch.randn(2, 11, 8, generator=generator(3))


def like(value: Any, x: Tensor) -> Any:
    return convert(value, lambda t: t.to(x.dtype))


def pairs_of(x: Tensor) -> Tensor:
    """(32, 4) of the pairs i <= j."""
    return x[FIRST, :4] * x[SECOND, 4:]


# Each op as a function of 11 rows of 8 numbers; its other inputs follow their dtype.
OPS: dict[str, Callable[..., Tensor]] = {
    "attention": lambda x, **o: ops.attention(
        x.view(11, 2, 4), *like(KEYS, x), OFFSETS, OFFSETS, like(BIAS, x), OFFSETS, **o
    ),
    "attention with dropout": lambda x, **o: ops.attention(
        x.view(11, 2, 4), *like(KEYS, x), OFFSETS, OFFSETS, dropout_p=0.3, seed=1, **o
    ),
    "attention_block": lambda x, **o: ops.attention_block(
        x, OFFSETS, like(BLOCK, x), 2, like(BIAS, x), OFFSETS, **o
    ),
    "causal_attention": lambda x, **o: ops.causal_attention(
        x.view(11, 2, 4), *like(KEYS[:, :, :1], x), OFFSETS, **o
    ),
    "dynamic_tanh": lambda x, **o: ops.dynamic_tanh(
        x, like(BLOCK.alpha1, x), like(BLOCK.gamma1, x), **o
    ),
    "linear_cross_entropy": lambda x, **o: ops.linear_cross_entropy(
        x, like(PAIR.fc1_weight.repeat(1, 3)[:, :8], x), None, CLASSES, **o
    ),
    "linear_cross_entropy_sum": lambda x, **o: ops.linear_cross_entropy_sum(
        x, like(PAIR.fc1_weight.repeat(1, 3)[:, :8], x), None, CLASSES, **o
    ),
    "linear": lambda x, **o: ops.linear(x, like(BLOCK.out_weight, x), **o),
    "local_block": lambda x, **o: ops.local_block(
        x[:, :4], NEIGHBOURS, like(EMBED, x), [like(BLOCK, x)], 2, **o
    ),
    "mlp": lambda x, **o: ops.mlp(x, like(BLOCK.mlp, x), **o),
    "pair_bias": lambda x, **o: ops.pair_bias(x[:, :4], OFFSETS, like(PAIR, x), **o),
    "pair_features": lambda x, **o: ops.pair_features(x[:5, :4], x[5:10, :4], **o),
    "pair_mlp": lambda x, **o: ops.pair_mlp(pairs_of(x), OFFSETS, like(LAYERS, x), **o),
    "spline": lambda x, **o: torch.stack(
        ops.spline(x[..., :1], 0.5 * x[..., None, :], least=0.05, **o), -1
    ),
}
COMPILED = [  # with a gradient
    op for op in OPS if op != "linear" and "cpu" in dispatch.backends_of(op.split()[0])
]


def close(have: Tensor, want: Tensor) -> bool:
    return bool((have - want).norm() <= 2e-5 * want.norm())


@pytest.mark.parametrize("op", OPS)
def test_forward_mode_and_functional_derivatives_are_right(op: str) -> None:
    def run(x: Tensor) -> Tensor:
        return OPS[op](x)

    def total(x: Tensor) -> Tensor:
        return run(x).square().sum()

    exact, tangent = X.double(), TANGENT.double()
    (_, have), (_, want) = torch.func.jvp(run, (X,), (TANGENT,)), torch.func.jvp(
        run, (exact,), (tangent,)
    )  # fmt: skip
    assert want.norm() > 0.1
    assert close(have, want)
    step = 1e-6  # and the float64 one is that of the function
    assert close((run(exact + step * tangent) - run(exact - step * tangent)) / (2 * step), want)
    leaf = exact.clone().requires_grad_()
    assert close(torch.func.grad(total)(X), torch.autograd.grad(total(leaf), leaf)[0])
    both = torch.func.vmap(run)(torch.stack([X, TANGENT]))
    assert close(both, torch.stack([run(exact), run(tangent)]))
    with torch.autograd.forward_ad.dual_level():
        dual = run(torch.autograd.forward_ad.make_dual(X, TANGENT))
        assert close(torch.autograd.forward_ad.unpack_dual(dual).tangent, want)


def second_gradient(op: str, x: Tensor, **options: str) -> Tensor:
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(OPS[op](x, **options).square().sum(), x, create_graph=True)
    return torch.autograd.grad(first.sin().sum(), x)[0]


@pytest.mark.parametrize("op", OPS)
def test_second_derivatives_are_right(op: str) -> None:
    want = second_gradient(op, X.double(), backend="reference")
    assert want.norm() > 0.1
    backends = ["auto"] + (["cpu"] if op in COMPILED else [])
    for backend in backends:
        assert close(second_gradient(op, X, backend=backend), want)


def test_an_input_given_twice_has_both_second_derivatives() -> None:
    def second(q: Tensor, backend: str) -> Tensor:
        q = q.clone().requires_grad_()
        out = ops.attention(q, q, q, OFFSETS, OFFSETS, backend=backend)
        (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), q)[0]

    q = X.view(11, 2, 4)
    assert close(second(q, "cpu"), second(q.double(), "reference"))


@pytest.mark.parametrize("op", OPS)
def test_hessians_are_right(op: str) -> None:
    def total(x: Tensor) -> Tensor:
        return OPS[op](x).sin().sum()

    have, want = torch.func.hessian(total)(X), torch.func.hessian(total)(X.double())
    assert want.norm() > 0.1
    assert close(have, want)


WEIGHTS: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "mlp": (BLOCK.mlp, lambda p: ops.mlp(X.to(p.fc1_weight), p)),
    "attention_block": (
        BLOCK,
        lambda p: ops.attention_block(X.to(p.gamma1), OFFSETS, p, 2, BIAS.to(p.gamma1), OFFSETS),
    ),
    "local_block": (
        BLOCK,
        lambda p: ops.local_block(
            PARTICLES.to(p.gamma1), NEIGHBOURS, like(EMBED, p.gamma1), [p], 2
        ),
    ),
    "pair_bias": (PAIR, lambda p: ops.pair_bias(PARTICLES.to(p.fc1_weight), OFFSETS, p)),
    "pair_mlp": (LAYERS, lambda p: ops.pair_mlp(pairs_of(X.to(p[0].weight)), OFFSETS, p)),
}


@pytest.mark.parametrize("op", WEIGHTS)
def test_an_ensemble_of_weights_is_one_batched_call(op: str) -> None:
    one, run = WEIGHTS[op]
    factors = torch.tensor([1.0, 0.5, -2.0])
    stacked = convert(one, lambda t: torch.stack([f * t for f in factors]))
    axes = convert(one, lambda t: 0)
    want = torch.stack([run(convert(one, lambda t, f=f: f.double() * t.double())) for f in factors])
    assert close(torch.func.vmap(run, in_dims=(axes,))(stacked), want)


class Op(torch.nn.Module):
    """An op of any number of rows, as one that is exported."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.run(x, other)


EXPORTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attention": lambda x, o: ops.attention(*(x.view(-1, 2, 4),) * 3, o, o),
    "attention_block": lambda x, o: ops.attention_block(x, o, BLOCK, 2),
    "causal_attention": lambda x, o: ops.causal_attention(*(x.view(-1, 2, 4),) * 3, o),
    "decode_attention": lambda x, o: ops.decode_attention(
        x.view(-1, 2, 4), *(x.view(-1, 1, 2, 4),) * 2, torch.ones_like(x[:, 0], dtype=torch.int64)
    ),
    "dynamic_tanh": lambda x, o: ops.dynamic_tanh(x, BLOCK.alpha1, BLOCK.gamma1),
    "knn": lambda x, o: ops.knn(x[:, :4], o, 3),
    "linear": lambda x, o: ops.linear(x, BLOCK.out_weight),
    "linear_cross_entropy": lambda x, o: ops.linear_cross_entropy(
        x, BLOCK.out_weight, None, x[:, 0].argsort() % 8
    ),
    "linear_cross_entropy_sum": lambda x, o: ops.linear_cross_entropy_sum(
        x, BLOCK.out_weight, None, x[:, 0].argsort() % 8
    ),
    "local_block": lambda x, o: ops.local_block(x[:, :4], o, EMBED, [BLOCK], 2),
    "mlp": lambda x, o: ops.mlp(x, BLOCK.mlp),
    "nearest_code": lambda x, o: ops.nearest_code(x, EMBED.fc2_weight.T),
    "pair_bias": lambda x, o: ops.pair_bias(x[:, :4], o[[0, -1]], PAIR, num_pairs=x.shape[0] ** 2),
    "pair_features": lambda x, o: ops.pair_features(x[:, :4], x[:, 4:]),
    # Of jets of one particle, which may be any number.
    "pair_mlp": lambda x, o: ops.pair_mlp(
        x[:, :4], torch.arange(x.shape[0] + 1), LAYERS, num_pairs=x.shape[0]
    ),
    "sample_linear": lambda x, o: ops.sample_linear(
        x, BLOCK.out_weight, None, x[:, 0].argsort(), top_k=5
    ),
    "spline": lambda x, o: torch.stack(ops.spline(x[:, 0], x), -1),
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("op", EXPORTED)
def test_an_exported_op_takes_other_numbers_of_jets_and_rows(op: str, strict: bool) -> None:
    rows, jets = torch.export.Dim("rows", min=2), torch.export.Dim("jets", min=2)
    others = {0: rows} if op == "local_block" else {0: jets}
    inputs = (X, NEIGHBOURS.contiguous() if op == "local_block" else OFFSETS)
    program = torch.export.export(
        Op(EXPORTED[op]), inputs, dynamic_shapes=({0: rows}, others), strict=strict
    ).module()
    x = torch.randn(20, 8, generator=generator(4))
    other = torch.tensor([0, 7, 7, 13, 19, 20, 20])
    if op == "local_block":
        other = ops.knn(x[:, :4], other, 3)
    torch.testing.assert_close(program(x, other), EXPORTED[op](x, other))


@pytest.mark.parametrize("op", COMPILED)
def test_a_named_backend_refuses_transforms(op: str) -> None:
    with pytest.raises(
        ValueError, match=f"cpu backend cannot run {op.split()[0]} here: forward-mode"
    ):
        torch.func.jvp(lambda x: OPS[op](x, backend="cpu"), (X,), (TANGENT,))


def test_forward_mode_is_not_lost_in_a_compiled_graph() -> None:
    def derivative(x: Tensor, t: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: OPS["mlp"](x), (x,), (t,))[1]

    compiled = torch.compile(derivative, backend="aot_eager")
    try:
        have = compiled(X, TANGENT)
    except Exception as error:
        assert "forward-mode" in str(error)  # noqa: PT017
    else:
        assert close(have, derivative(X.double(), TANGENT.double()))


BLOCKS = {
    "norms": [BLOCK, BLOCK._replace(mlp=random_mlp(8, 12, 8, norm=False))],
    "many": [BLOCK] * 33,
    "half": [BLOCK._replace(out_weight=BLOCK.out_weight.double())],
}


def local(blocks: Any, neighbours: Tensor = NEIGHBOURS, heads: int = 2) -> Callable[..., Tensor]:
    return lambda backend, leaf=PARTICLES: ops.local_block(
        leaf, neighbours, EMBED, blocks, heads, backend=backend
    )


NOT_COVERED: dict[str, tuple[str, Callable[..., Tensor], str]] = {
    "cpu local_block shapes": ("cpu", local(BLOCKS["norms"]), "the blocks differ in shape"),
    "cpu local_block many": ("cpu", local(BLOCKS["many"]), "at most 32 blocks"),
    "cpu local_block dtype": ("cpu", local(BLOCKS["half"]), "out_weight is torch.float64"),
    "cpu pair_bias norm": (
        "cpu",
        lambda b: ops.pair_bias(PARTICLES, OFFSETS, random_mlp(3, 8, 2), backend=b),
        "two biases and no norm",
    ),
    "cpu pair_bias biases": (
        "cpu",
        lambda b: ops.pair_bias(PARTICLES, OFFSETS, PAIR._replace(fc1_bias=None), backend=b),
        "two biases and no norm",
    ),
    "cpu pair_mlp depth": (
        "cpu",
        lambda b: ops.pair_mlp(
            pairs_of(X), OFFSETS, [ops.LinearParameters(torch.eye(4), None)] * 17, backend=b
        ),
        "at most 16 layers",
    ),
    "cpu linear_cross_entropy dtype": (
        "cpu",
        lambda b: ops.linear_cross_entropy(X, X.double(), None, torch.arange(11), backend=b),
        "weight is torch.float64",
    ),
    "cpu linear_cross_entropy_sum dtype": (
        "cpu",
        lambda b: ops.linear_cross_entropy_sum(X, X.double(), None, torch.arange(11), backend=b),
        "weight is torch.float64",
    ),
    "cpu linear dtype": (
        "cpu",
        lambda b: ops.linear(X, BLOCK.out_weight.double(), backend=b),
        "weight is torch.float64",
    ),
    "cpu sample_linear dtype": (
        "cpu",
        lambda b: ops.sample_linear(X, X.double(), None, torch.arange(11), backend=b),
        "weight is torch.float64",
    ),
    "cpu mlp dtype": (
        "cpu",
        lambda b: ops.mlp(X, BLOCK.mlp._replace(gamma=BLOCK.mlp.gamma.double()), backend=b),
        "gamma is torch.float64",
    ),
    "cpu attention_block dtype": (
        "cpu",
        lambda b: ops.attention_block(
            X, OFFSETS, BLOCK._replace(gamma1=BLOCK.gamma1.half()), 2, backend=b
        ),
        "gamma1 is torch.float16",
    ),
    "triton knn": (
        "triton",
        lambda b: ops.knn(X, OFFSETS, 2, columns=8, backend=b),
        "2 coordinates, not 8",
    ),
    "triton pair_bias norm": (
        "triton",
        lambda b: ops.pair_bias(PARTICLES, OFFSETS, random_mlp(3, 8, 2), backend=b),
        "two biases and no norm",
    ),
    "triton pair_bias particles": (
        "triton",
        lambda b: ops.pair_bias(PARTICLES.clone().requires_grad_(), OFFSETS, PAIR, backend=b),
        "no gradient of the particles",
    ),
    "triton shared_pair_bias particles": (
        "triton",
        lambda b: ops.shared_pair_bias(
            PARTICLES.clone().requires_grad_(), OFFSETS, PAIR, 2, backend=b
        )[0],
        "no gradient of the particles",
    ),
    "triton local_block particles": (
        "triton",
        lambda b: local([BLOCK])(b, PARTICLES.clone().requires_grad_()),
        "no gradient of the particles",
    ),
    "triton local_block neighbours": (
        "triton",
        local([BLOCK], NEIGHBOURS.repeat(1, 22)),
        "1 to 64 neighbours, not 66",
    ),
    "triton attention heads": (
        "triton",
        lambda b: ops.attention(*torch.zeros(3, 11, 1, 144), OFFSETS, OFFSETS, backend=b),
        "heads are 144 wide, more than 128",
    ),
    "triton causal_attention heads": (
        "triton",
        lambda b: ops.causal_attention(*torch.zeros(3, 11, 1, 144), OFFSETS, backend=b),
        "heads are 144 wide, more than 128",
    ),
    "triton attention_block heads": (
        "triton",
        lambda b: ops.attention_block(
            torch.zeros(11, 144), OFFSETS, random_block(144, 16), 1, backend=b
        ),
        "wider than 128",
    ),
}


@pytest.mark.parametrize("case", NOT_COVERED)
def test_what_a_backend_does_not_cover_is_refused_by_name_and_left_to_another_by_auto(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, run, reason = NOT_COVERED[case]
    if backend == "triton":
        pytest.importorskip("triton", reason="needs Triton")
        if triton_device() != "cpu":
            pytest.skip("for Triton's interpreter: the inputs are on the CPU, and Triton has a GPU")
    with pytest.raises(ValueError, match=f"the {backend} backend cannot run .* here: .*{reason}"):
        run(backend)
    if "dtype" in case:
        return  # PyTorch's own products refuse it too
    want = run("reference")
    monkeypatch.delenv("JETKERN_BACKEND", raising=False)
    torch.testing.assert_close(run("auto"), want)
    monkeypatch.setenv("JETKERN_BACKEND", backend)  # for a whole program: it falls back
    torch.testing.assert_close(run("auto"), want)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_offsets_and_neighbours_may_be_int32_or_a_layout(backend: str) -> None:
    small, layout = OFFSETS.int(), Packed(OFFSETS)
    for offsets in (small, layout):
        for have, want in (
            (ops.knn(PARTICLES, offsets, 2, backend=backend), ops.knn(PARTICLES, OFFSETS, 2)),
            (
                ops.pair_bias(PARTICLES, offsets, PAIR, backend=backend),
                ops.pair_bias(PARTICLES, OFFSETS, PAIR, backend=backend),
            ),
            (
                ops.pair_mlp(pairs_of(X), offsets, LAYERS, backend=backend),
                OPS["pair_mlp"](X, backend=backend),
            ),
            (
                ops.attention(X.view(11, 2, 4), *KEYS, offsets, offsets, BIAS, offsets,
                              backend=backend),
                OPS["attention"](X, backend=backend),
            ),
            (
                ops.attention_block(X, offsets, BLOCK, 2, BIAS, offsets, backend=backend),
                OPS["attention_block"](X, backend=backend),
            ),
        ):  # fmt: skip
            assert torch.equal(have, want)
    assert torch.equal(local([BLOCK], NEIGHBOURS.int())(backend), local([BLOCK])(backend))


def test_a_bias_of_another_dtype_is_taken_also_under_autocast() -> None:
    want = OPS["attention"](X)
    q = X.view(11, 2, 4)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 2e-2)):
        have = ops.attention(q, *KEYS, OFFSETS, OFFSETS, BIAS.to(dtype), OFFSETS, backend="cpu")
        torch.testing.assert_close(have, want, atol=tolerance, rtol=tolerance)
    with torch.autocast("cpu", torch.bfloat16):
        low = ops.attention(q.bfloat16(), *KEYS.bfloat16(), OFFSETS, OFFSETS, BIAS, OFFSETS)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), want, atol=5e-2, rtol=5e-2)


COLD = """
import sys, torch
from jetkern import ops
assert "torch._dynamo" not in sys.modules and "triton" not in sys.modules
p, o = torch.randn(9, 4), torch.tensor([0, 4, 9])
w = ops.MLPParameters(torch.randn(16, 3), torch.randn(16), None, None, torch.randn(2, 16),
                      torch.randn(2))
backend = sys.argv[1]
def f(q, p, o):
    bias = ops.pair_bias(p, o, w, num_pairs=41, backend=backend)
    return ops.attention(q, q, q, o, o, bias, o, backend=backend)
q = torch.randn(9, 2, 8)
out = torch.compile(f, fullgraph=True, backend="eager")(q, p, o)
assert torch.equal(out, f(q, p, o))
"""


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_a_fresh_process_compiles_several_ops_and_imports_no_compiler(backend: str) -> None:
    """In a process of its own, hence slow: what is imported while it is traced must be found."""
    if backend == "triton":
        pytest.importorskip("triton", reason="needs Triton")
        if triton_device() != "cpu":
            pytest.skip("for Triton's interpreter: the inputs are on the CPU, and Triton has a GPU")
    command = [sys.executable, "-c", COLD, backend]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


BAD = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("value", BAD)
def test_what_is_not_finite_shows_where_the_reference_shows_it(value: float, column: int) -> None:
    particles = PARTICLES.clone()
    particles[2, column] = value
    for op in (
        lambda b: ops.pair_bias(particles, OFFSETS, PAIR, backend=b),
        lambda b: local([BLOCK])(b, particles),
        lambda b: ops.mlp(particles.repeat(1, 2), BLOCK.mlp, backend=b),
        lambda b: ops.attention_block(particles.repeat(1, 2), OFFSETS, BLOCK, 2, backend=b),
        lambda b: ops.attention(
            particles.repeat(1, 2).view(11, 2, 4), *KEYS, OFFSETS, OFFSETS, backend=b
        ),
        lambda b: ops.causal_attention(
            particles.repeat(1, 2).view(11, 2, 4), *KEYS, OFFSETS, backend=b
        ),
        lambda b: ops.knn(particles, OFFSETS, 4, backend=b),
        lambda b: ops.linear_cross_entropy(
            particles, EMBED.fc1_weight[:, :4], None, CLASSES % 16, backend=b
        ),
        lambda b: ops.pair_mlp(particles[FIRST] * particles[SECOND], OFFSETS, LAYERS, backend=b),
    ):
        have, want = op("cpu"), op("reference")
        assert torch.equal(have.isfinite(), want.isfinite())
        torch.testing.assert_close(have[have.isfinite()], want[want.isfinite()])
