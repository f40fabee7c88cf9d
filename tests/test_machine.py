"""What a machine says of its cores."""

import os
import subprocess
import sys

import pytest

from jetkern import machine


@pytest.mark.parametrize(
    ("threads", "free", "said"),
    [(2, 0.9, True), (2, 1.8, False), (1, 0.0, False), (2, None, False)],
)
def test_more_threads_than_free_cores_are_said(monkeypatch, threads, free, said):
    monkeypatch.setattr(machine, "free_cores", lambda: free)
    assert ("0.9 cores free: --threads 1 or" in machine.crowded(threads)) == said


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_a_busy_core_is_not_free():
    cores = os.sched_getaffinity(0)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in cores]
    try:
        found = machine.free_cores(0.5)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert found is None or found < len(cores) / 2
