"""What a training says while it runs: metrics.jsonl, and a progress bar or plain lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from jetkern.io import naming, printable, read_bytes, write_atomically

LINE_SECONDS = 5.0


def read_metrics(
    path: Path | str, *, say: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line cut short by a kill is left out.

    Args:
        say: called once, if there are other damaged lines, which then are left out, too.

    Raises:
        ValueError: naming the file and, without ``say``, the first damaged line.
    """
    lines = read_bytes(Path(path)).split(b"\n")
    if not lines[-1]:
        del lines[-1]
    records = [_decode(line) for line in lines]
    damaged = [number for number, r in enumerate(records[:-1], 1) if r is None]
    if damaged and say is None:
        raise ValueError(f"{printable(path)}, line {damaged[0]}: not a record of a training")
    if damaged and say is not None:
        say(f"{printable(path)}: {len(damaged)} damaged lines are left out, first {damaged[0]}")
    return [r for r in records if r is not None]


class TrainingLog:
    """Reports the steps of one training; on ranks other than 0 it is given no path and is silent.

    Each record has ``kind`` ("train", "validation" or an event), ``step`` (updates done) and
    ``seconds`` since this process started training. On a terminal a bar shows rate and time left;
    elsewhere there is a line at most every five seconds.

    Args:
        path: of metrics.jsonl, or None to say and write nothing.
        total_steps: length of the training.
        step: where it starts; later records in the file, of a run that was killed, are removed.
        batch_size: sets per step.
        sets: what they are, such as jets.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        total_steps: int,
        step: int = 0,
        batch_size: int,
        sets: str = "jets",
    ) -> None:
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.sets = sets
        self._file: TextIO | None = None
        if path is not None:
            self._path = path
            _keep_until(path, step)
            self._file = open(path, "a")  # noqa: SIM115 - open for the length of the training
        self._bar = tqdm(
            total=total_steps * batch_size,
            initial=step * batch_size,
            unit=sets,
            unit_scale=True,
            dynamic_ncols=True,
            disable=True if path is None else None,
        )
        self._start = self._since = time.perf_counter()
        self._first_step = self._step = step
        self._last_line = -math.inf

    def say(self, message: str) -> None:
        """A message for the user, above the bar."""
        if self._file is not None and message:
            tqdm.write(message)

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Appends a record; numbers that are not finite are written as null."""
        if self._file is None:
            return
        seconds = round(time.perf_counter() - self._start, 3)
        record = {"kind": kind, "step": step, "seconds": seconds, **values}
        with naming(self._path):
            self._file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
            self._file.flush()

    def train(
        self, step: int, losses: Mapping[str, float], *, lr: float, grad_norm: float, waited: float
    ) -> None:
        """Reports the steps since the last report.

        Args:
            step: updates done.
            losses: mean over those steps, by name, with their sum as "loss".
            grad_norm: norm of the last step's gradient before clipping.
            waited: seconds of them that were spent waiting for data.
        """
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        rate = (step - self._step) * self.batch_size / elapsed
        wait = waited / elapsed
        self._bar.update((step - self._step) * self.batch_size)
        self._since, self._step = now, step
        self.record(
            "train",
            step,
            lr=lr,
            grad_norm=grad_norm,
            jets_per_s=round(rate, 1),
            data_wait=round(wait, 4),
            **losses,
        )
        told = f"{_told(losses)} lr {lr:.2e} wait {wait:.0%}"
        if not self._bar.disable:
            self._bar.set_postfix_str(told)
        elif now - self._last_line >= LINE_SECONDS or step == self.total_steps:
            self._last_line = now
            left = (self.total_steps - step) * (now - self._start) / max(step - self._first_step, 1)
            self.say(
                f"step {step}/{self.total_steps}  {told}  {rate:,.0f} {self.sets}/s  "
                f"{timedelta(seconds=round(left))} left"
            )

    def validation(
        self, step: int, losses: Mapping[str, float], details: Mapping[str, float], *, best: bool
    ) -> None:
        """Reports a validation; the time it took does not count as training. ``details`` go to the
        file alone."""
        self.record("validation", step, best=best, **losses, **details)
        told = f"validation: {_told(losses)}{' (best)' if best else ''}"
        self.say(f"step {step}/{self.total_steps}  {told}")
        self._since = time.perf_counter()

    def close(self) -> None:
        """Ends the bar and closes the file."""
        self._bar.close()
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been said
                self._file.close()
            self._file = None


def _told(losses: Mapping[str, float]) -> str:
    """The sum of the losses and, if it is of several, its parts."""
    parts = [f"{name} {value:.4f}" for name, value in losses.items() if name != "loss"]
    return f"loss {losses['loss']:.4f}" + (f" ({' '.join(parts)})" if len(parts) > 1 else "")


def _keep_until(path: Path, step: int) -> None:
    if path.exists():
        kept = [r for r in read_metrics(path, say=tqdm.write) if r["step"] <= step]
        write_atomically(path, "".join(json.dumps(r) + "\n" for r in kept).encode())


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }
