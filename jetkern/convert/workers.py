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
        ["jetkern.convert.gather", "jetkern.convert.readers.hdf5"]
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
    """Up to ``jobs`` processes, started when first needed; with one job, this process.

    Args:
        common: what all functions get as their first argument, sent to each process once.
    """

    def __init__(self, jobs: int, common: Any) -> None:
        self.jobs, self.common = jobs, common
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
        """Calls ``function(common, *arguments)`` for all (number, arguments), and
        ``done(number, result)`` as each one ends. The first error ends the run."""
        if self.jobs == 1 or (len(tasks) == 1 and self._pool is None):
            for number, arguments in tasks:
                done(number, function(self.common, *arguments))
            return
        if self._pool is None and tasks:
            start_server()
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(self.jobs, context, _prepare, (self.common,))
        pending: dict[Any, int] = {}
        rest = iter(tasks)
        try:
            while True:
                # A short queue, so that an error or an interrupt ends the run at once.
                while len(pending) < 2 * self.jobs and (task := next(rest, None)) is not None:
                    assert self._pool is not None
                    pending[self._pool.submit(_call, function, task[1])] = task[0]
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    done(pending.pop(future), future.result())
        except BrokenProcessPool:
            raise WorkerDied("a process of the conversion died (out of memory?)") from None


_common: Any = None


def _call(function: Callable[..., Any], arguments: tuple) -> Any:
    return function(_common, *arguments)


def _prepare(common: Any) -> None:
    """Keeps the common argument; ends this process when the one that started it is gone, even by
    SIGKILL."""
    global _common
    _common = common
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
