"""How the tests of the drivers call them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Small enough for a test, large enough for validation, checkpoints and a shuffle to happen.
PRETRAIN = {
    "--objective": "pretrain",
    "--lr": "1e-3",
    "--batch-size": "32",
    "--steps": "24",
    "--warmup-steps": "4",
    "--val-every": "8",
    "--val-jets": "64",
    "--save-every": "6",
    "--log-every": "1",
    "--threads": "1",
}
FINETUNE = {k: v for k, v in PRETRAIN.items() if k != "--objective"}


def flags(defaults, *more, **changes):
    """Defaults as flags, with changes by name (None removes) and further flags."""
    merged = defaults | {f"--{k.replace('_', '-')}": v for k, v in changes.items()}
    pairs = [[k, str(v)] for k, v in merged.items() if v is not None]
    return [*(word for pair in pairs for word in pair), *map(str, more)]


def start(script, *arguments, processes=1, **options):
    """A driver in its own process, or in several under torchrun."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += [f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [*launcher, f"train/{script}.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def drive(script, *arguments, processes=1):
    """Runs a driver to its end: (exit code, stdout, stderr)."""
    process = start(script, *arguments, processes=processes)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
