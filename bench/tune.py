"""Finds the fastest launch settings of the Triton kernels on this GPU and writes its table.

    python -m bench.tune [--ops knn ...] [--sizes micro small ...] [--precisions bf16 tf32]
                         [--data DIR] [--again]

Runs each op forward and backward at the sizes of the presets, tries every candidate of every kernel
that it launches, and keeps the fastest whose results agree. The table of the GPU's family,
``jetkern/ops/gpu/sm<NN>.json``, is written after each choice, so the command can be stopped and
given again: what the table has is not tuned anew unless ``--again`` is given.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases import OPS, PARTICLES, Case, make
from bench.jets import batch
from bench.ops import between, clock
from jetkern.io import AtomicFile
from jetkern.model.presets import SIZES
from jetkern.ops import dispatch
from jetkern.ops.gpu import launch

TUNED = tuple(op for op in OPS if "triton" in dispatch.backends_of(op))
GAIN = 0.98  # of the default's time: a smaller gain is noise, and the default stays
NOTE = "measured on"  # the table's entry that is no kernel
AGREE = {"ieee": 1e-5, "tf32": 4e-3, "bf16": 3e-2}  # relative distance of two right results


def candidates() -> dict[str, list[dict[str, int]]]:
    """Settings to try for each kernel, from all modules."""
    found: dict[str, list[dict[str, int]]] = {}
    for path in sorted(launch.TABLES.parent.glob("*/triton*")):  # modules and packages
        module = importlib.import_module(f"jetkern.ops.{path.parent.name}.triton")
        found |= getattr(module, "CANDIDATES", {})  # none where it launches kernels of others
    return found


def by_default(kernel: str, key: str, device: torch.device) -> dict[str, int]:
    """Chooses the defaults in the code, whatever the table says."""
    return {}


def results(case: Case, precision: str) -> list[Tensor]:
    """Result and gradients on the Triton kernels."""
    module, inputs, leaves = case.prepare(torch.float32, precision)
    out = case.run(module, inputs, "triton", precision)
    gradients = torch.autograd.grad(out, leaves, torch.ones_like(out)) if leaves else ()
    return [out.detach(), *gradients]


def seconds(case: Case, precision: str, repeats: int) -> float:
    """Median time of forward and backward, after one uncounted round."""
    module, inputs, leaves = case.prepare(torch.float32, precision)
    mark = clock(inputs[0].device.type)
    times = []
    for _ in range(repeats + 1):
        start = mark()
        out = case.run(module, inputs, "triton", precision)
        if leaves:
            torch.autograd.grad(out, leaves, torch.ones_like(out))
        times.append(between(start, mark()))
    return statistics.median(times[1:])


def agree(have: list[Tensor], want: list[Tensor], precision: str) -> bool:
    """Whether results differ by no more than rounding."""
    for a, b in zip(have, want, strict=True):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return False
        elif b.numel() > 1 and not (a - b).norm() <= AGREE[precision] * b.norm():
            return False
    return True


def fastest(
    case: Case, precision: str, kernel: str, key: str, tried: list[dict[str, int]], repeats: int
) -> tuple[dict[str, int], float]:
    """The best settings, {} for the default, and their time as a fraction of the default's."""
    want = results(case, precision)
    default = seconds(case, precision, repeats)
    best, best_time = {}, GAIN * default
    for settings in tried:
        with launch.forced_settings(kernel, key, settings):
            try:
                if not agree(results(case, precision), want, precision):
                    print(f"{kernel} [{key}] {settings}: wrong result, left out", file=sys.stderr)
                    continue
                time_ = seconds(case, precision, repeats)
            except Exception as error:  # more registers or shared memory than there are
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                print(f"{kernel} [{key}] {settings}: {reason}", file=sys.stderr)
                continue
        if time_ < best_time:
            best, best_time = settings, time_
    if case.inputs[0].is_cuda:
        torch.cuda.synchronize()  # raises if a candidate broke the context: no row is written then
    return best, best_time / default if best else 1.0


def write(table: dict[str, Any], path: Path) -> None:
    """Replaces the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(path) as file:
        file.write((json.dumps(table, indent=1, sort_keys=True) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    """The table, empty if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def rows(table: dict[str, Any]) -> set[tuple[str, str]]:
    """(kernel, key) of all settings in a table."""
    return {(kernel, key) for kernel in set(table) - {NOTE} for key in table[kernel]}


def dead(table: dict[str, Any], asked: set[tuple[str, str]]) -> list[str]:
    """The rows of a table that do nothing: of a launch that is not asked for, of a kernel that is
    not tuned, or with a setting that none of its candidates has.

    Args:
        asked: (kernel, key) of the launches, see ``launch.settings_asked``.
    """
    found, known = [], candidates()
    for kernel, key in sorted(rows(table)):
        names = {name for tried in known.get(kernel, ()) for name in tried}
        if (kernel, key) not in asked or not table[kernel][key].keys() <= names:
            found.append(f"{kernel} [{key}]")
    return found


def tune(
    case: Case,
    precision: str,
    table: dict[str, Any],
    settled: set[tuple[str, str]],
    path: Path,
    repeats: int,
) -> set[tuple[str, str]]:
    """Tunes what one op launches, all but the ``settled`` (kernel, key), and writes the table.

    Nothing is launched with the table's own rows: they would be measured as the default.

    Returns:
        (kernel, key) of what it launches.
    """
    choices = candidates()
    with launch.chosen_by(by_default), launch.settings_asked() as asked:
        results(case, precision)
        wanted = sorted(asked)
    for kernel, key in wanted:
        if (kernel, key) in settled or kernel not in choices:
            continue
        start = time.perf_counter()
        tried = choices[kernel]
        with launch.chosen_by(by_default):
            best, fraction = fastest(case, precision, kernel, key, tried, repeats)
        table.setdefault(kernel, {})[key] = best
        settled.add((kernel, key))
        write(table, path)
        print(
            f"{kernel} [{key}]: {best or 'default'}, {fraction:.2f} of the default's time, "
            f"{len(tried)} tried in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ops", nargs="+", choices=TUNED, default=list(TUNED))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--precisions", nargs="+", choices=dispatch.PRECISIONS, default=["bf16", "tf32"]
    )
    parser.add_argument("--data", default="", help="folder of HDF5 files; without it, drawn jets")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--again", action="store_true", help="tune what the table has, too")
    settings = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench.tune: PyTorch finds no CUDA GPU")

    device = torch.device("cuda")
    family = launch.family(device)
    path = launch.TABLES / f"sm{family}.json"
    table = read(path)
    settled = set() if settings.again else rows(table)
    table[NOTE] = {
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "command": " ".join(["python -m bench.tune", *sys.argv[1:]]),
    }
    cases = [(s, o, p) for s in settings.sizes for o in settings.ops for p in settings.precisions]
    asked: set[tuple[str, str]] = set()
    for number, (size, op, precision) in enumerate(cases, 1):
        print(f"{number} of {len(cases)}: {op}, {size}, {precision}", flush=True)
        jets = batch("real", PARTICLES["cuda"][size], settings.data).to(device)
        case = make(op, size, jets)
        asked |= tune(case, precision, table, settled, path, settings.repeats)
    whole = set(settings.ops) == set(TUNED) and set(settings.sizes) == set(SIZES)
    if whole and (unused := dead(table, asked)):
        print(f"{path.name} has rows that do nothing, take them out: {', '.join(unused)}")


if __name__ == "__main__":
    main()
