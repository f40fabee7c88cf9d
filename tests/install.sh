#!/usr/bin/env bash
# Installs jetkern as a user does, and uses it from another folder: an sdist, a wheel made from it, a
# fresh environment with PyTorch, the commands; then the same without a C++ compiler.
# Usage: tests/install.sh PYTHON TORCH, as torch==2.13.0; PYTHON has PyTorch and setuptools.
set -euo pipefail
python=$(realpath -s "$1") torch=$2 source=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH JETKERN_BACKEND JETKERN_CPU_LIBRARY JETKERN_CUDA_LIBRARY
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1 NVCC=/nonexistent

cp "$source/tests/jets/jetclass.h5" "$place"
(cd "$source" && "$python" -c "
from setuptools import build_meta
build_meta.build_sdist('$place')" > "$place/sdist.log" 2>&1) || { cat "$place/sdist.log"; exit 1; }
cd "$place"  # nothing of the checkout is in reach from here on
"$python" -m pip wheel --no-deps --wheel-dir compiled jetkern-*.tar.gz
CXX=/nonexistent "$python" -m pip wheel --no-deps --wheel-dir plain jetkern-*.tar.gz
"$python" -m venv fresh
fresh/bin/python -m pip install "$torch" "$(echo compiled/*.whl)[train,data]"
before=$(fresh/bin/python -c "import torch; print(torch.__version__)")

use() {  # use NAME: convert, pre-train 20 steps, evaluate
  jetkern=$place/fresh/bin/jetkern out=$place/$1
  "$jetkern" convert jetclass.h5 --out "$out/shards" --splits train=0.5,val=0.2,test=0.3 --quiet
  "$jetkern" verify "$out"/shards/* --quiet
  "$jetkern" pretrain --preset micro --objective classifier --data "$out/shards" --out "$out/run" \
    --steps 20 --warmup-steps 2 --batch-size 16 --lr 1e-3 --log-every 10 --val-every 20 \
    2> >(tee "$out/pretrain.log" >&2)
  "$jetkern" evaluate "$out/run" --data "$out/shards" --out "$out/results" --bootstrap 5
  test -s "$out/results/report.json"
}

fresh/bin/jetkern doctor | tee doctor.txt
grep -qE "^attention +cpu +float32 +cpu " doctor.txt
use compiled-run
! grep -q "reference ops" compiled-run/pretrain.log

fresh/bin/python -m pip install --no-deps --force-reinstall plain/*.whl
fresh/bin/jetkern doctor | tee doctor.txt
grep -qE "^attention +cpu +float32 +reference +not cpu: not compiled" doctor.txt
use plain-run
test "$(grep -c "reference ops here" plain-run/pretrain.log)" = 1
test "$(fresh/bin/python -c "import torch; print(torch.__version__)")" = "$before"
echo "installed and used from another folder, with and without compiled ops"
