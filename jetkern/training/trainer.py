"""The training loop: any number of processes, killed and continued without a trace.

A step takes the next ``batch_size`` jets of the training order, whatever the number of processes
and of passes that they are split into. Every random number is a function of the seed and the
jet's place in that order, so a checkpoint needs no generator state, and a run continued from one
ends with the same bits (same machine, software and number of processes; for other numbers of
processes the losses agree to rounding).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jetkern.data import Shards, Stream, select_classes
from jetkern.io import explain, write_atomically
from jetkern.machine import crowded, repeating
from jetkern.model.kinds import Model, kind_of
from jetkern.model.layers import set_precision
from jetkern.objectives import Objective
from jetkern.training.checkpoints import RunError, checkpoint_folders
from jetkern.training.config import TrainSettings, as_dict
from jetkern.training.data import describe
from jetkern.training.distributed import World
from jetkern.training.flat import FlatParameters
from jetkern.training.graphed import GraphedStep, graphed
from jetkern.training.log import TrainingLog
from jetkern.training.optim import build_optimizer, parameter_groups
from jetkern.training.runs import Run
from jetkern.training.schedule import lr_at
from jetkern.training.signals import StopSignal
from jetkern.training.step import Step
from jetkern.training.weights import restore_optimizer

MAX_SKIPPED = 10
TRIVIAL_JETS = 10_000
SIGNAL = "stopped by a signal"


class TrainingError(ValueError):
    """A training that cannot go on, and where it stopped."""


class Trainer:
    """Trains the model of an objective in a run folder.

    Args:
        settings: of the training.
        objective: the losses; all its parameters are trained. Moved to the device of ``world``.
        world: this process among the others.
        train: jets to train on.
        val: jets to validate on; None for no validation.
        identity: what else, besides the settings, the result depends on.
        lr_factors: learning rate of parameters over the common one, by name; 1 for the others.
        held: parameters that begin to learn later, by name, and ``thawed``, of their learning rate
            by updates done.
        task: its name, for the checkpoints.

    Raises:
        ValueError: for settings that do not fit each other or the data.
    """

    def __init__(
        self,
        settings: TrainSettings,
        objective: Objective,
        world: World,
        train: Shards,
        val: Shards | None = None,
        *,
        identity: Mapping[str, Any] | None = None,
        lr_factors: Mapping[str, float] | None = None,
        held: Collection[str] = (),
        thawed: Callable[[int], float] | None = None,
        task: str | None = None,
    ) -> None:
        self.settings, self.world = settings, world
        self.optim, self.run_settings = settings.optim, settings.run
        if settings.run.threads is not None:
            torch.set_num_threads(settings.run.threads)
        set_precision(objective, settings.optim.precision)
        self.objective = objective.to(world.device)
        self.model: Model = objective.model

        def flat(objective: Objective) -> FlatParameters:
            named = objective.model.named_parameters()
            decay = self.optim.weight_decay
            groups = parameter_groups(named, decay, factors=lr_factors, held=held)
            return FlatParameters(groups)

        self.average, average = None, None
        if self.optim.ema_decay is not None:
            self.average = copy.deepcopy(objective)
            average = self.average, flat(self.average)
            self.average.requires_grad_(False)
        self.weights = flat(objective)
        self.optimizer = build_optimizer(
            self.optim.optimizer, self.weights.groups, lr=self.optim.lr, betas=self.optim.betas
        )
        self.update = Step(
            self.objective,
            self.weights,
            self.optimizer,
            world,
            lr=self._lr,
            clip=self.optim.clip,
            per_pass=self._per_pass(),
            average=average,
            decay=self.optim.ema_decay or 0.0,
            thawed=thawed,
            held=[p for name, p in self.model.named_parameters() if name in held],
        )
        self.advance: Step | GraphedStep = self.update
        if settings.run.graph:
            batch = self.optim.batch_size // world.size
            self.advance = graphed(self.update, per_pass=self._per_pass(), batch=batch)
        config = self.model.config
        self.sets = train.words[0]
        self.stream = Stream(
            train,
            batch_size=self.optim.batch_size,
            seed=settings.seed,
            rank=world.rank,
            world_size=world.size,
            num_jets=settings.num_jets,
            subset_seed=settings.seed,
            fields=objective.fields,
            prefetch=settings.run.prefetch,
            pin_memory=world.device.type == "cuda",
        )
        self.val = val
        self.data = {**describe(train), "task": task}
        self.step = 0
        self.trivial: dict[str, float] | None = None  # what a model has to beat, once it is known
        self.details: dict[str, float] = {}  # of the last validation
        self.best: dict[str, float] | None = None
        self.misses = 0
        self.owed = False  # a validation that a signal broke off
        self.stop = StopSignal()
        self.identity = {
            **as_dict(settings.optim),
            **as_dict(settings.validation),
            "seed": settings.seed,
            "num_jets": settings.num_jets,
            "train_data": train.fingerprint,
            "val_data": None if val is None else val.fingerprint,
            **{f"model.{k}": v for k, v in dataclasses.asdict(config).items()},
            **(identity or {}),
        }

    def fit(self) -> dict[str, Any]:
        """Trains until all steps are done, validation stops improving, or a signal asks to stop.

        Returns:
            ``reason``, ``step``, and the ``best`` validation; the same is in the file DONE unless
            a signal stopped it.

        Raises:
            RunError: if the run folder holds another training.
            TrainingError: after ``MAX_SKIPPED`` updates in a row without a finite gradient, for a
                validation that is not finite, and at the end if the last update was left out.
        """
        with ExitStack() as stack:
            run, done, state = self._open(stack)
            if done is not None:
                return done
            self._restore(state)
            log = TrainingLog(
                None if run is None else run.path / "metrics.jsonl",
                total_steps=self.optim.steps,
                step=self.step,
                batch_size=self.optim.batch_size,
                sets=self.sets,
            )
            stack.callback(log.close)
            log.say(self._summary())
            if run is not None and self.world.device.type == "cpu":
                log.say(crowded(torch.get_num_threads()))
            stack.enter_context(self.stop)
            stack.enter_context(repeating())
            reason = self._loop(run, log)
            result = {"reason": reason, "step": self.step, "best": self.best}
            if reason == SIGNAL:
                log.say(f"{reason} after step {self.step}: the same command continues")
            else:
                log.say(f"{reason}, step {self.step}")
                if self.best is not None:
                    log.say("best validation: loss {loss:.4f}, step {step}".format(**self.best))
                if run is not None:
                    run.finish(**result)
        return result

    def validate(self) -> dict[str, float] | None:
        """Mean losses over the validation jets, with the averaged weights if they are kept.

        The noise and masks of a jet are the same at every validation.

        Returns:
            the losses by name, or None if a signal asked to stop before the end. What a loss says
            apart (``Loss.details``) is in ``self.details``.
        """
        assert self.val is not None
        objective = self.objective if self.average is None else self.average
        stream = Stream(
            self.val,
            batch_size=self._per_pass() * self.world.size,
            rank=self.world.rank,
            world_size=self.world.size,
            shuffle=False,
            epochs=1,
            num_jets=_at_most(self.settings.validation.val_jets, self.val.num_jets),
            fields=objective.fields,
            prefetch=self.run_settings.prefetch,
        )
        # For each loss the sum and what it is a sum over.
        names = [f"{loss.name}_{detail}" for loss in objective.losses for detail in loss.details]
        number = len(objective.losses)
        totals = torch.zeros(2, number + len(names), dtype=torch.float64, device=self.world.device)
        spread = [i for i, loss in enumerate(objective.losses) for _ in loss.details]
        objective.eval()
        with torch.no_grad():
            for jets in stream:
                if self.stop.requested:
                    break
                if len(jets):
                    sums, weights, apart = objective.sums(jets.to(self.world.device))
                    every = [torch.stack(list(sums.values())), *apart.values()]
                    totals[0] += torch.cat([values.double() for values in every])
                    totals[1] += torch.cat([weights, weights[spread]])
        objective.train()
        if self.world.any(self.stop.requested):
            return None
        sums_, weights_ = self.world.sum(totals)
        means = (sums_ / weights_.clamp(min=1)).tolist()
        losses = {
            loss.name: loss.scale * mean
            for loss, mean in zip(objective.losses, means[:number], strict=True)
        }
        self.details = dict(zip(names, means[number:], strict=True))
        return {**losses, "loss": sum(losses.values())}

    def _open(
        self, stack: ExitStack
    ) -> tuple[Run | None, dict[str, Any] | None, dict[str, Any] | None]:
        """The run folder, what it finished with, and the state to continue from.

        Only the main process touches the folder; the others learn from it what it found.
        """
        run: Run | None = None
        found: tuple[dict[str, Any] | None, dict[str, Any] | None] = None, None
        error = None
        if self.world.is_main:
            try:
                run = Run(
                    self.settings.out,
                    keep_last=self.run_settings.keep_last,
                    keep_every=self.run_settings.keep_every,
                )
                stack.callback(run.close)
                run.open(
                    as_dict(self.settings),
                    self.identity,
                    allow_mismatch=self.run_settings.allow_mismatch,
                )
                found = (run.done, None) if run.done else (None, run.load_latest())
            except (RunError, OSError) as problem:
                error = str(problem)
        error, found = self.world.share((error, found))
        if error is not None:
            raise RunError(error)
        done, state = found
        if run is not None and done is not None:
            print(f"{run.path} is finished: {done['reason']}, step {done['step']}")
        return run, done, state

    def _loop(self, run: Run | None, log: TrainingLog) -> str:
        batches = iter(self.stream)
        saved_at = time.monotonic()
        waited = 0.0
        self.objective.train()
        while self.owed or not self._finished():
            if not self.owed:
                begin = time.perf_counter()
                jets = next(batches)
                waited += time.perf_counter() - begin
                if isinstance(self.advance, GraphedStep):
                    self.advance(jets, self.step)
                else:
                    jets = self.objective.prepared(jets).to(self.world.device, non_blocking=True)
                    self.advance(jets, self.step)
                self.step += 1
                at_end = self.step == self.optim.steps
                logged = at_end or self.step % self.run_settings.log_every == 0
                if logged:
                    norm, lr = float(self.update.norm), self._lr(self.step - 1)
                    log.train(self.step, self.update.means(), lr=lr, grad_norm=norm, waited=waited)
                    waited = 0.0
                # A GPU is not waited for in between.
                known = logged or self.world.device.type == "cpu"
                if known and self.update.settle() >= MAX_SKIPPED:
                    self._save(run)
                    raise self._not_finite(run)
                self.owed = self.val is not None and (
                    at_end or self.step % self.settings.validation.val_every == 0
                )
            improved = self.owed and self._validation(run, log)
            stopping = self.world.any(self.stop.requested)
            minutes = (time.monotonic() - saved_at) / 60
            if (
                improved
                or stopping
                or self._finished()
                or self.step % self.run_settings.save_every == 0
                or self.step % (self.run_settings.keep_every or self.optim.steps) == 0
                or minutes >= self.run_settings.save_minutes
            ):
                self._save(run)
                saved_at = time.monotonic()
            if stopping and (self.owed or not self._finished()):
                return SIGNAL
        if self._out_of_patience():
            return "out of patience"
        if self.update.settle() or not self.update.sound():
            raise self._not_finite(run)
        return "all steps done"

    def _finished(self) -> bool:
        return self.step >= self.optim.steps or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        patience = self.settings.validation.patience
        return patience is not None and self.misses >= patience

    def _per_pass(self) -> int:
        share = self.optim.batch_size // self.world.size
        return min(self.run_settings.micro_batch or share, share)

    def _lr(self, step: int) -> float:
        return lr_at(
            step,
            peak=self.optim.lr,
            warmup_steps=self.optim.warmup_steps,
            total_steps=self.optim.steps,
        )

    def _validation(self, run: Run | None, log: TrainingLog) -> bool:
        losses = self.validate()
        if losses is None:
            return False
        self.owed = False
        improved = self.best is None or losses["loss"] < self.best["loss"]
        if not math.isfinite(losses["loss"]):
            log.validation(self.step, losses, self.details, best=False)
            named = ", ".join(f"{k} {v}" for k, v in losses.items() if not math.isfinite(v))
            raise TrainingError(
                f"the validation after step {self.step} gave {named}; {self._kept(run)}"
            )
        if improved:
            self.best = {"step": self.step, **losses}
            self.misses = 0
            if run is not None:
                run.save_best(self.step, self._weights(), self._facts())
        else:
            self.misses += 1
        if self.trivial is None:
            self.trivial = self._trivial()
        log.validation(self.step, losses | self.trivial, self.details, best=improved)
        return improved

    def _trivial(self) -> dict[str, float]:
        """What does not look at a jet would reach on some validation jets."""
        assert self.val is not None
        jets = min(TRIVIAL_JETS, self.val.num_jets)
        stream = Stream(
            self.val,
            batch_size=jets,
            shuffle=False,
            epochs=1,
            fields=self.objective.fields,
            prefetch=0,
        )
        return self.objective.trivial(next(iter(stream)).to(self.world.device))

    def _weights(self) -> dict[str, Any]:
        average = None if self.average is None else _apart(self.average.model)
        return {
            "step": self.step,
            "kind": kind_of(self.model),
            "model_config": _plain(dataclasses.asdict(self.model.config)),
            "model": _apart(self.model),
            "average": average,
            "data": self.data,
        }

    def _facts(self) -> dict[str, Any]:
        config = dataclasses.asdict(self.model.config)
        return {
            "kind": kind_of(self.model),
            "model_config": config,
            "best": self.best,
            "identity": self.identity,
        }

    def _save(self, run: Run | None) -> None:
        """Writes a checkpoint, unless its weights are known to be of no use."""
        if not self.update.sound() or run is None:
            return
        state = {
            **self._weights(),
            "optimizer": self.weights.split(self.optimizer.state_dict()),
            "stream": self.stream.state(),
            "best": self.best,
            "misses": self.misses,
            "skipped": self.update.skipped,
            "owed": self.owed,
        }
        run.save(self.step, state, self._facts())
        if self.best is not None:
            run.drop_other_bests(int(self.best["step"]))

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None and state["average"] is not None:
                self.average.model.load_state_dict(state["average"])
            restore_optimizer(self.optimizer, self.weights.joined(state["optimizer"]))
            self.step = state["step"]
            self.best, self.misses = state["best"], state["misses"]
            self.update.skipped = state["skipped"]
            self.owed = state.get("owed", False)  # absent before there was a choice
            if self.run_settings.allow_mismatch:
                self.stream.seek(state["stream"]["position"])
            else:
                self.stream.load_state(state["stream"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            # By its checksum it is what was written, but not by this training.
            raise RunError(
                f"{self.settings.out}: the checkpoint does not fit this training: {explain(error)}"
            ) from error

    def _summary(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        of = "" if trained == parameters else f" ({trained:,} of them trained)"
        per_pass = self._per_pass()
        passes = -(-self.optim.batch_size // (per_pass * self.world.size))
        start = f"from step {self.step}" if self.step else "from the start"
        return (
            f"{'+'.join(self.model.config.parts)}: {parameters:,} parameters{of}, "
            f"{self.stream.num_jets:,} {self.sets}, {self.optim.steps:,} steps of "
            f"{self.optim.batch_size} {self.sets}, {self.world.size} x {self.world.device.type}"
            + (f", {passes} passes of {per_pass}" if passes > 1 else "")
            + f"; {self.settings.out}, {start}"
        )

    def _not_finite(self, run: Run | None) -> TrainingError:
        count, size = self.update.skipped, self.optim.batch_size
        if not count:
            return TrainingError(
                f"the weights after step {self.step} do not give finite losses; {self._kept(run)}"
            )
        last = self.step * size - 1
        first = last + 1 - count * size
        if run is not None:
            content = {"step": self.step, "first_jet": first, "last_jet": last}
            write_atomically(run.path / "not_finite.json", json.dumps(content).encode())
        return TrainingError(
            f"no finite gradient in {count} updates in a row, up to step {self.step}: "
            f"{self.sets} {first} to {last} of the training order; {self._kept(run)}"
        )

    def _kept(self, run: Run | None) -> str:
        found = [] if run is None else checkpoint_folders(run.path, "step")
        return f"the last good weights are {found[-1]}" if found else "no weights were good"


def open_splits(data: Path, classes: Sequence[str] = ()) -> tuple[Shards, Shards | None]:
    """The shard folders ``data``/train and, if it is there, ``data``/val.

    Args:
        data: their parent.
        classes: names of those to use; none for all.

    Raises:
        ValueError: if the two do not have the same classes and fields, or lack one of ``classes``.
    """
    train = Shards(data / "train")
    if not (data / "val").is_dir():
        return select_classes(train, classes), None
    val = Shards(data / "val")
    ours, theirs = describe(train), describe(val)
    theirs["fields"] = {k: v for k, v in theirs["fields"].items() if k in ours["fields"]}
    for what in ("classes", "condition", "fields"):
        if ours[what] != theirs[what]:
            raise ValueError(
                f"{data}: train and val differ in {what}: {ours[what]}, {theirs[what]}"
            )
    return select_classes(train, classes), select_classes(val, classes)


def _at_most(wanted: int | None, available: int) -> int | None:
    return None if wanted is None or wanted >= available else wanted


def _apart(model: Model) -> dict[str, Tensor]:
    """A copy of the state: saved views would each bring along their whole buffer."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
