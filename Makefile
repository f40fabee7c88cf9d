# Every target does the set-up it needs. `make help` lists them.
PYTHON ?= python3
PY := .venv/bin/python
TORCH := torch==2.13.0
TRITON := triton==3.8.0

.DEFAULT_GOAL := help
.PHONY: help setup kernels demo demo-generation study test test-slow test-install test-sanitize resources docs lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# torch comes first and by exact version: an open range would fetch gigabytes of CUDA libraries.
# Without build isolation the C++ kernels compile against that same torch.
.venv/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(PY) -m pip install -q --disable-pip-version-check $(TORCH) $(TRITON) "setuptools>=77" wheel numpy
	@rm -f jetkern/_cpu.so
	$(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@
	@[ ! -f jetkern/_cpu.so ] || touch .venv/.kernels

.venv/.kernels: .venv/.installed $(wildcard csrc/cpu/*.* csrc/cpu/*/*)
	$(PY) -m jetkern build
	@touch $@

# In a make of its own, which sees whether the installation has compiled the kernels already; where it
# failed to, which pip hides, this says why.
setup: .venv/.installed  ## virtual environment in .venv with everything
	@$(MAKE) -s .venv/.kernels

kernels: setup  ## compile the C++ kernels if they changed

demo: setup  ## simulate jets, pre-train, fine-tune, compare (12 to 21 minutes on 2 cores)
	$(PY) train/demo.py

demo-generation: setup  ## fine-tune generators of jets, generate, judge (under 15 minutes on 2 cores)
	$(PY) train/demo_generation.py

study: setup  ## a small grid of trainings end to end, with its report (30 to 45 minutes on 2 cores)
	$(PY) -m jetkern study studies/small.toml --out study/small

test: setup  ## the test suite (no network, no GPU), but for its slowest part
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 -m "not slow"

test-slow: setup  ## the slowest part: what GPU launches compile to, long trainings, older CPUs
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 -m slow

test-sanitize: setup  ## the C++ kernels under the address and undefined-behaviour sanitizers
	$(PY) -m jetkern build --sanitize --into build/sanitize
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 JETKERN_CPU_LIBRARY=build/sanitize/_cpu.so OMP_NUM_THREADS=1 \
	$(PY) -m pytest -q -p no:xdist -k "not compil" \
	$(addprefix tests/ops/test_,$(addsuffix .py,knn pair_bias attention attention_block local_block mlp cpu_bf16 fuzz))

resources: setup  ## what the presets launch on GPUs at float32 precisions, compiled without one
	$(PY) -m bench.resources --precisions ieee tf32

test-install: setup  ## install into a fresh environment and use it from another folder
	tests/install.sh $(PY) $(TORCH)

docs: setup  ## the documentation as a site in build/site
	$(PY) -m pip install -q --disable-pip-version-check -e '.[docs]' --no-build-isolation
	$(PY) -m mkdocs build --strict --site-dir build/site

lint: setup  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup  ## let ruff rewrite
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove what the build and the demo left
	rm -rf build demo study jetkern/.build-* *.egg-info .pytest_cache .ruff_cache .mypy_cache
