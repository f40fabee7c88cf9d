from __future__ import annotations

import sys

import pytest
import torch

from jetkern.ops import mlp
from jetkern.ops.parameters import optional_parts, tensors
from tests.ops.helpers import check_accuracy, check_alphas, generator, random_mlp, threads

PARTS = [
    {},
    {"bias1": False, "bias2": False},
    {"norm": False},
    {"bias1": False, "norm": False, "bias2": False},
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 100, 333])
@pytest.mark.parametrize(("inputs", "hidden", "outputs"), [(4, 64, 32), (7, 9, 5), (130, 33, 1)])
def test_cpu_accuracy(
    rows: int, inputs: int, hidden: int, outputs: int, parts: dict[str, bool]
) -> None:
    x = 2 * torch.randn(rows, inputs, generator=generator(3))
    check_accuracy(mlp, x, random_mlp(inputs, hidden, outputs, **parts))


def test_cpu_accuracy_far_from_zero() -> None:
    x = torch.linspace(-12, 12, 203)[:, None].expand(203, 3)
    check_accuracy(mlp, x, random_mlp(3, 20, 6))


def test_cpu_accuracy_of_the_alpha() -> None:
    x = torch.randn(20_000, 7, generator=generator(3))
    check_alphas(mlp, x, [random_mlp(7, 64, 32)])


def test_the_same_bits_with_any_number_of_threads() -> None:
    x = torch.randn(5000, 8, generator=generator(3))
    weights = random_mlp(8, 16, 4)
    leaves = [x.requires_grad_(), weights.fc1_weight.requires_grad_()]
    results = []
    for n in (1, 2, 3, 4):
        with threads(n):
            out = mlp(x, weights, backend="cpu")
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_cpu_accuracy_of_large_matrices(precision: str) -> None:
    """Matrices that are packed while they are used, a gradient that threads add to in turn."""
    x = torch.randn(200, 520, generator=generator(3))
    check_accuracy(mlp, x, random_mlp(520, 1101, 520), precision=precision)


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_large_gradients_have_the_same_bits_with_any_number_of_threads(precision: str) -> None:
    x = torch.randn(700, 520, generator=generator(3))
    weights = random_mlp(520, 1101, 520)
    leaves = [w.requires_grad_() for w in weights]
    results = []
    for n in (1, 2, 3, 4):
        with threads(n):
            out = mlp(x, weights, precision=precision, backend="cpu")
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0], strict=True))


def test_inputs_need_not_be_contiguous() -> None:
    x = torch.randn(8, 50, generator=generator(3)).t()
    weights = random_mlp(8, 16, 4)
    assert mlp(x, weights, backend="cpu").equal(mlp(x.contiguous(), weights, backend="cpu"))


@pytest.mark.parametrize("field", ["fc1_bias", "gamma", "fc2_weight"])
def test_a_weight_of_a_wrong_shape_is_named(field: str) -> None:
    weights = random_mlp(7, 9, 5)
    wrong = weights._replace(**{field: getattr(weights, field)[..., :-1]})
    with pytest.raises(ValueError, match=f"parameters.{field} must have shape"):
        mlp(torch.randn(3, 7), wrong)


def test_inputs_of_a_wrong_width_are_named() -> None:
    with pytest.raises(ValueError, match="fc1_weight must have shape"):
        mlp(torch.randn(3, 6), random_mlp(7, 9, 5))


def test_auto_leaves_few_rows_of_a_large_perceptron_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(
        sys.modules["jetkern.ops.mlp"],
        "run",
        lambda op, backend, *_, **options: asked.append(backend),
    )
    monkeypatch.delenv("JETKERN_BACKEND", raising=False)
    large, small = random_mlp(512, 1024, 512), random_mlp(128, 256, 128)
    for rows, weights in ((8, large), (400, large), (8, small)):
        mlp(torch.zeros(rows, weights.fc1_weight.shape[1]), weights)
    mlp(torch.zeros(8, 512), large, backend="cpu")
    monkeypatch.setenv("JETKERN_BACKEND", "cpu")
    mlp(torch.zeros(8, 512), large)
    assert asked == ["reference", "auto", "auto", "cpu", "auto"]


def test_opcheck_and_compile() -> None:
    weights = random_mlp(3, 16, 4, bias2=False)
    x = torch.randn(20, 3, generator=generator(3))
    leaves = [w.requires_grad_() for w in tensors(weights)]
    arguments = (x.clone().requires_grad_(), leaves, 16, 4, optional_parts(weights), False)
    torch.library.opcheck(torch.ops.jetkern.mlp, arguments)
    compiled = torch.compile(mlp, fullgraph=True, backend="aot_eager")
    assert compiled(x, weights, backend="cpu").equal(mlp(x, weights, backend="cpu"))
