"""File systems of clusters that know neither flock nor the syncing of folders, by a library that is
loaded before libc: the same bytes, and one note that says what is not guaranteed."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.factories import write_jetnet_shards, write_toy_shards

ROOT = Path(__file__).parents[1]
CODE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

int flock(int descriptor, int operation) {
    const char *number = getenv("NO_FLOCK");
    if (number) {
        errno = atoi(number);
        return -1;
    }
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(descriptor, operation);
}

int fsync(int descriptor) {
    struct stat found;
    if (getenv("NO_FOLDER_SYNC") && !fstat(descriptor, &found) && S_ISDIR(found.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(descriptor);
}
"""
# Everything that writes, in one process: conversion, training, and jets as HDF5.
COMMANDS = """
import sys
from pathlib import Path

from jetkern.cli import convert, pretrain
from jetkern.data import Shards
from jetkern.evaluation.files import write_jetnet
from jetkern.evaluation.generate import first_jets

source, shards, jetnet, out = sys.argv[1:]
classes = ["--classes", "a,b"]
assert convert.main([source, "--out", f"{out}/shards", "--quiet", *classes]) == 0
tiny = "--steps 2 --batch-size 8 --warmup-steps 0 --val-jets 16 --threads 1".split()
run = ["--objective", "classifier", "--data", shards, "--out", f"{out}/run"]
assert pretrain.main([*run, *tiny]) == 0
conditions = Shards(jetnet)
write_jetnet(Path(out) / "jetnet", first_jets(conditions), conditions.classes)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("library")
    (folder / "storage.c").write_text(CODE)
    made = folder / "storage.so"
    command = [compiler, "-shared", "-fPIC", "-o", made, folder / "storage.c", "-ldl"]
    if subprocess.run(command).returncode:
        pytest.skip("the C compiler makes no libraries")
    return made


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    import h5py
    import numpy as np

    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    with h5py.File(folder / "a.h5", "w") as file:
        file["data"] = rng.normal(0, 0.2, (40, 9, 4)).astype("f4")
        file["pid"] = np.arange(40) % 2
    for split in ("train", "val"):
        write_toy_shards(folder / "toy" / split, ["a", "b"], jets=64)
    write_jetnet_shards(folder / "jetnet", [3, 1, 5, 2, 4])
    return folder / "a.h5", folder / "toy", folder / "jetnet"


def files_of(out):
    """Those of a run, but for what says when and where."""
    changing = {"config.json", "metrics.jsonl", "MANIFEST.json"}
    return {
        p.relative_to(out): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and p.name not in changing
    }


def test_everything_works_and_says_what_is_not_guaranteed(library, inputs, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["-c", *map(str, inputs), str(whole)])
    exec(compile(COMMANDS, "commands", "exec"), {})
    torch.set_num_threads(threads)
    assert len(files_of(whole)) > 8
    environment = {
        "LD_PRELOAD": str(library), "NO_FLOCK": str(errno.ENOLCK), "NO_FOLDER_SYNC": "1",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *map(str, inputs), str(out)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert files_of(out) == files_of(whole)
    assert done.stderr.count(f"the file system of {out / 'run'} has no locks") == 1
    assert done.stderr.count(f"the file system of {out / 'run'} cannot sync") == 1
