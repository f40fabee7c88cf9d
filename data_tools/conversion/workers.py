"""A pool of processes that ends cleanly whatever happens to it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any


def start_server() -> None:
    """Starts the process that forks the workers, if it does not run yet.

    It imports everything once, so workers need not, and it has no threads that a fork could harm.
    Started early, it imports while this process does.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["conversion.gather", "readers.hdf5"]
    )
    before = os.environ.get("PYTHONPATH")
    # The server does not get sys.path (until Python 3.14), without which it can preload nothing.
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


class WorkerDied(RuntimeError):
    """A process of the pool ended by itself."""


class Workers:
    """Up to ``jobs`` processes, started when first needed; with one job, this process."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(
        self,
        function: Callable[..., Any],
        tasks: Sequence[tuple[int, tuple]],
        done: Callable[[int, Any], None],
    ) -> None:
        """Calls ``function(*arguments)`` for all (number, arguments), ``done(number, result)`` as
        each one ends. The first error ends the run."""
        if self.jobs == 1 or (len(tasks) == 1 and self._pool is None):
            for number, arguments in tasks:
                done(number, function(*arguments))
            return
        if self._pool is None and tasks:
            start_server()
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(self.jobs, context, initializer=_die_with_parent)
        pending: dict[Any, int] = {}
        rest = iter(tasks)
        try:
            while True:
                # A short queue, so that an error or an interrupt ends the run at once.
                while len(pending) < 2 * self.jobs and (task := next(rest, None)) is not None:
                    assert self._pool is not None
                    pending[self._pool.submit(function, *task[1])] = task[0]
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    done(pending.pop(future), future.result())
        except BrokenProcessPool:
            raise WorkerDied("a process of the conversion died (out of memory?)") from None


def _die_with_parent() -> None:
    """Ends this process when the one that started it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
