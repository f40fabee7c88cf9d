"""The CUDA sources through nvcc, where there is one; no GPU is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from jetkern.build import BuildError, build_cuda, cuda_resources, nvcc

ROOT = Path(__file__).parents[2]


@pytest.fixture
def needs_nvcc() -> None:
    try:
        nvcc()
    except BuildError as error:
        pytest.skip(str(error))


def test_no_compiler_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NVCC", str(tmp_path / "no-such-nvcc"))
    with pytest.raises(BuildError, match="no-such-nvcc"):
        build_cuda(ROOT / "csrc", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("needs_nvcc")
def test_no_kernel_spills_registers() -> None:
    rows = cuda_resources(ROOT / "csrc")
    assert {row.op for row in rows} == {"attention", "knn"}
    assert {row.architecture for row in rows} == {80, 90}
    assert [row for row in rows if row.spills] == []


@pytest.mark.slow
@pytest.mark.usefixtures("needs_nvcc")
def test_the_library_loads_where_there_is_no_gpu(tmp_path: Path) -> None:
    sources = tmp_path / "csrc"
    for folder in ("cpu/host", "cuda"):
        (sources / folder).mkdir(parents=True)
        for file in (ROOT / "csrc" / folder).glob("*.*"):
            if folder == "cpu/host" or not file.name.startswith("attention"):  # kNN will do
                (sources / folder / file.name).write_bytes(file.read_bytes())
    library = build_cuda(sources, tmp_path)
    program = f"""
import torch
from jetkern.ops.knn import cuda
torch.ops.load_library({str(library)!r})
try:
    cuda.knn(torch.zeros(3, 2), torch.tensor([0, 3]), 1)
except NotImplementedError as error:
    assert "CPU" in str(error)
    print("loaded")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "loaded\n", done.stderr
