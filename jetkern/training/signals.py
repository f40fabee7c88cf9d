"""Ending a training in good order: what the system, the launcher or the user asks for."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

SAME_SECONDS = 5.0  # signals so close together are one request that came on several ways
PATIENCE_SECONDS = 120.0  # for the end of a process whose launcher is gone
POLL_SECONDS = 0.5


def launched() -> bool:
    """Whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class StopSignal:
    """Remembers SIGTERM, SIGUSR1 and SIGINT (Ctrl-C), so that a training can end with a checkpoint.

    A second signal ends the process at once. Below ``torchrun``, one within five seconds of the
    first does not count as a second: Slurm and Ctrl-C signal the launcher and its processes, and
    the launcher passes on what it gets. Use as a context manager in the main thread.

    Attributes:
        requested: whether a signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: Any) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not launched():
            for handled in self._before:
                signal.signal(handled, signal.SIG_DFL)

    def __exit__(self, *exception: Any) -> None:
        if self.requested and launched():
            return  # the launcher's own may still come, while this process ends
        for number, handler in self._before.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """From now on, this process gets SIGTERM when ``torchrun`` is gone, even by SIGKILL.

    If that does not end it within two minutes, it ends without a checkpoint.
    """
    if launched():
        threading.Thread(
            target=_watch, args=(os.getppid(),), name="jetkern-launcher", daemon=True
        ).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_SECONDS)
    os._exit(1)
