#!/usr/bin/env bash
# Installs jetkern as a user does, and uses it from another folder: an sdist, a wheel made from it, a
# fresh environment with PyTorch, the commands, two processes of torchrun; then the same without a C++
# compiler; then `jetkern build` where the package may not be written.
# Usage: tests/install.sh PYTHON TORCH, as torch==2.13.0; PYTHON has PyTorch and setuptools.
set -euo pipefail
python=$(realpath -s "$1") torch=$2 source=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'chmod -R u+w "$place"; rm -rf "$place"' EXIT
unset PYTHONPATH JETKERN_BACKEND JETKERN_CPU_LIBRARY
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1

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

refuse() {  # the command must fail: `! command` would end no script
  if "$@"; then echo "unexpected: $*"; exit 1; fi
}

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
refuse grep "reference ops" compiled-run/pretrain.log
fresh/bin/torchrun --standalone --nproc-per-node=2 -m jetkern pretrain --objective classifier \
  --data "$out/shards" --out both --steps 4 --warmup-steps 1 --batch-size 16 --val-every 4 \
  2>&1 | tee both.log
grep -q "2 x cpu" both.log
test -s both/DONE

fresh/bin/python -m pip install --no-deps --force-reinstall plain/*.whl
fresh/bin/jetkern doctor | tee doctor.txt
grep -qE "^attention +cpu +float32 +reference +not cpu: not compiled" doctor.txt
use plain-run
test "$(grep -c "reference ops here" plain-run/pretrain.log)" = 1

chmod -R a-w fresh
restricted=()  # root writes where it likes, unless that is taken from it
[ "$(id -u)" != 0 ] || restricted=(setpriv --bounding-set=-dac_override --inh-caps=-dac_override)
export XDG_CACHE_HOME=$place/cache HOME=$place
refuse "${restricted[@]}" touch "$(echo fresh/lib/python*/site-packages/jetkern)/_cpu.so"
"${restricted[@]}" fresh/bin/jetkern build | grep -F "$place/cache/jetkern/"
"${restricted[@]}" fresh/bin/jetkern doctor | tee doctor.txt
grep -qE "^attention +cpu +float32 +cpu " doctor.txt
"${restricted[@]}" fresh/bin/jetkern pretrain --objective classifier --data "$out/shards" \
  --out read-only-run --steps 2 --warmup-steps 0 --batch-size 16 --val-every 2

test "$(fresh/bin/python -c "import torch; print(torch.__version__)")" = "$before"
echo "installed and used from another folder, with and without compiled ops, in a read-only package"
