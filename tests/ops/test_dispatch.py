import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jetkern import ops
from jetkern.build import BuildError, build, compiler
from jetkern.cli.doctor import report
from jetkern.ops import dispatch, knn
from jetkern.ops.parameters import tensors
from tests.ops.helpers import random_block, random_mlp, random_particles

ROOT = Path(__file__).parents[2]
FLOAT32, FLOAT64 = torch.float32, torch.float64


@pytest.fixture(autouse=True)
def _no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JETKERN_BACKEND", raising=False)


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(dispatch, "LIBRARY", tmp_path / "_cpu.so")
    dispatch.cpu_library.cache_clear()
    dispatch._say_once.cache_clear()
    yield
    dispatch.cpu_library.cache_clear()
    dispatch._say_once.cache_clear()


def test_auto_takes_the_kernels_where_they_run_and_else_the_reference() -> None:
    assert dispatch.choose("knn", "auto", "cpu", FLOAT32) == "cpu"
    assert dispatch.choose("knn", "auto", "cpu", FLOAT64) == "reference"
    assert dispatch.choose("pair_features", "auto", "cpu", FLOAT32) == "reference"
    assert dispatch.choose("knn", "reference", "cpu", FLOAT32) == "reference"


def test_a_backend_asked_for_by_name_runs_or_raises() -> None:
    particles, offsets = random_particles([4])
    with pytest.raises(ValueError, match=r"cannot run knn here: it computes in torch\.float32"):
        knn(particles.double(), offsets, 2, backend="cpu")
    with pytest.raises(ValueError, match="pair_features has no cpu implementation"):
        dispatch.choose("pair_features", "cpu", "cpu", FLOAT32)
    with pytest.raises(ValueError, match="the data is on cuda"):
        dispatch.choose("knn", "cpu", "cuda", FLOAT32)
    with pytest.raises(ValueError, match="unknown backend 'gpu': choose one of auto, reference"):
        knn(particles, offsets, 2, backend="gpu")


def test_the_environment_overrides_auto_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETKERN_BACKEND", "reference")
    assert dispatch.choose("knn", "auto", "cpu", FLOAT32) == "reference"
    assert dispatch.choose("knn", "cpu", "cpu", FLOAT32) == "cpu"
    monkeypatch.setenv("JETKERN_BACKEND", "fast")
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        dispatch.choose("knn", "auto", "cpu", FLOAT32)


def test_the_environment_asks_for_what_a_backend_is_made_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JETKERN_BACKEND", "cpu")
    assert dispatch.choose("knn", "auto", "cpu", FLOAT32) == "cpu"
    assert dispatch.choose("knn", "auto", "cpu", FLOAT64) == "reference"
    assert dispatch.choose("pair_features", "auto", "cpu", FLOAT32) == "reference"


def test_what_a_backend_in_the_environment_is_not_made_for_runs_on_the_best_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    monkeypatch.setattr(dispatch, "triton_gpu", lambda: "")
    monkeypatch.setenv("JETKERN_BACKEND", "triton")
    assert dispatch.choose("knn", "auto", "cuda", FLOAT32) == "triton"
    assert dispatch.choose("knn", "auto", "cuda", FLOAT64) == "reference"
    assert dispatch.choose("pair_features", "auto", "cuda", FLOAT32) == "reference"
    monkeypatch.setattr(dispatch, "triton_gpu", lambda: "too old")
    with pytest.raises(ValueError, match="triton backend cannot run knn here: too old"):
        dispatch.choose("knn", "auto", "cuda", FLOAT32)


@pytest.mark.usefixtures("not_compiled")
def test_the_environment_does_not_hide_that_a_backend_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JETKERN_BACKEND", "cpu")
    with pytest.raises(ValueError, match="cpu backend cannot run knn here: not compiled"):
        dispatch.choose("knn", "auto", "cpu", FLOAT32)


@pytest.mark.usefixtures("not_compiled")
def test_without_the_library_the_reference_runs_and_says_so_once() -> None:
    particles, offsets = random_particles([6])
    with pytest.warns(UserWarning, match="reference ops here: not compiled"):
        first = knn(particles, offsets, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        knn(particles, offsets, 2)
    assert torch.equal(first, knn(particles, offsets, 2, backend="reference"))
    with pytest.raises(ValueError, match="jetkern build"):
        knn(particles, offsets, 2, backend="cpu")


@pytest.mark.usefixtures("not_compiled")
def test_a_library_that_does_not_load_is_named() -> None:
    dispatch.LIBRARY.write_bytes(b"not a library")
    assert "does not load, compile it again" in dispatch.cpu_library()


def test_no_compiler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(BuildError, match="no-such-compiler"):
        build(ROOT / "csrc", tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler"):
        compiler()


def test_a_failed_build_leaves_the_library_as_it_was(tmp_path: Path) -> None:
    sources = tmp_path / "csrc"
    (sources / "cpu" / "host").mkdir(parents=True)
    (sources / "cpu" / "host" / "broken.cpp").write_text("int broken(")
    target = tmp_path / "package"
    target.mkdir()
    (target / "_cpu.so").write_bytes(b"old")
    with pytest.raises(BuildError, match=r"broken\.cpp"):
        build(sources, target)
    assert [p.name for p in target.iterdir()] == ["_cpu.so"]
    assert (target / "_cpu.so").read_bytes() == b"old"


def test_the_report_names_every_op_its_backend_and_the_reason() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JETKERN_")}
    done = subprocess.run(
        [sys.executable, "-m", "jetkern"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = {tuple(line.split()[:4]) for line in done.stdout.splitlines()}
    assert ("knn", "cpu", "float32", "cpu") in rows
    assert ("knn", "cpu", "float64", "reference") in rows
    assert ("knn", "cpu", "bfloat16", "reference") in rows
    assert re.search(r"^pair_bias +cpu +A perceptron with both biases and", done.stdout, re.M)
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "the best of this CPU" in done.stdout


def reasons(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], str]:
    """The report's table: (op, device, dtype, backend) and why, on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(dispatch, "triton_gpu", lambda: "")
    table = re.sub(r"\n +", " ", report().split("\n\n")[1])  # long reasons go on below themselves
    rows = [line.split(maxsplit=4) for line in table.splitlines()[1:]]
    return {tuple(row[:4]): row[4] for row in rows}


def test_the_report_has_a_reason_for_each_backend_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton", reason="needs Triton")
    monkeypatch.setattr(dispatch, "interpreted", lambda: True)
    why = reasons(monkeypatch)
    assert why["dynamic_tanh", "cpu", "float32", "reference"] == "not triton: by name only"
    made = "not triton: it computes in torch.float32 or torch.bfloat16, the data is torch.float64"
    assert why["dynamic_tanh", "cpu", "float64", "reference"] == made
    assert why["knn", "cuda", "float32", "triton"] == "not cpu: the data is on cuda"

    monkeypatch.setenv("JETKERN_BACKEND", "reference")
    expected = "not cpu: the data is on cuda; not triton: by JETKERN_BACKEND"
    assert reasons(monkeypatch)["knn", "cuda", "float32", "reference"] == expected


@pytest.mark.filterwarnings("ignore:jetkern runs its reference ops here")
def test_the_report_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_package", lambda: "triton is not installed")
    expected = "not cpu: the data is on cuda; not triton: triton is not installed"
    assert reasons(monkeypatch)["knn", "cuda", "float32", "reference"] == expected


class Untouched(TorchDispatchMode):
    """Calls what it is given: with it, ops go through the dispatcher."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_calls_past_the_dispatcher_are_the_same():
    particles, offsets = random_particles([3, 0, 1, 9])
    block, embed = random_block(8, 12), random_mlp(7, 16, 8)
    pair = random_mlp(3, 16, 2, norm=False)
    x = torch.linspace(-1, 1, 13 * 8).reshape(13, 8).requires_grad_()
    weights = [w.requires_grad_() for w in tensors(block, embed, pair)]

    def gradients():
        neighbours = ops.knn(particles, offsets, 3)
        bias = ops.pair_bias(particles, offsets, pair)
        out = ops.attention_block(x, offsets, block, 2, bias, offsets)
        out = out + ops.local_block(particles, neighbours, embed, [block], 2)
        out = ops.mlp(out, block.mlp)
        heads = out.unflatten(1, (2, 4))
        out = ops.attention(heads, heads, heads, offsets, offsets, bias, offsets)
        return out.detach(), *torch.autograd.grad(out.square().sum(), [x, *weights])

    direct = gradients()
    with Untouched():
        dispatched = gradients()
    for ours, theirs in zip(direct, dispatched, strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        assert not ops.mlp(x, block.mlp).requires_grad
