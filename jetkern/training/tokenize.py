"""Fitting a tokeniser of particles from shards, and reading it back.

A fit is a run folder as trainings have them: killed at any moment, it is continued by the same
command to the same bits, and for any number of processes.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from jetkern.data import Shards, Stream
from jetkern.io import explain, write_atomically
from jetkern.jets import Jets
from jetkern.tables import show
from jetkern.tokenizers import KINEMATICS, TRACKS, KMeans, QuantileNormal, Tokenizer
from jetkern.tokenizers.report import Quality, quality, quality_table
from jetkern.tokenizers.tokenizer import check_features
from jetkern.training.checkpoints import RunError, find_checkpoint, read_checkpoint
from jetkern.training.distributed import World
from jetkern.training.runs import Run
from jetkern.training.signals import StopSignal
from jetkern.training.trainer import open_splits

KINDS = ("kmeans", "scale")
SAVE_SECONDS = 60.0
PARTICLES_PER_CODE = 400  # of the whole fit, unless it is told how many updates to make
PER_ROUND = 20  # particles of a code between looks for dead ones, on average
REPLACING = 0.7  # of the updates replace dead codes
DEFAULT = (*KINEMATICS[:3], *TRACKS)


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings:
    """What a tokeniser is fitted to.

    Attributes:
        kind: "kmeans", or "scale" for a scale alone.
        data: folder with the shard folders train and, to judge it, val.
        out: run folder.
        codes: K.
        features: of ``FEATURES``; None for delta eta, delta phi, ln pT and tracks, where the jets
            have them.
        seed: of the order of the jets and all choices.
        scale_jets: jets that the scale is fitted to.
        batch_size: jets of an update.
        steps: updates; None for 400 particles of each code in all.
        report_jets: that it is judged by.
    """

    kind: str
    data: Path
    out: Path
    codes: int = 1024
    features: tuple[str, ...] | None = None
    seed: int = 0
    scale_jets: int = 50_000
    batch_size: int = 1024
    steps: int | None = None
    report_jets: int = 10_000


def tokenize(settings: TokenizeSettings, world: World) -> Tokenizer | None:
    """Fits a tokeniser, or continues to; the main process writes it and its report.

    Returns:
        it, or None if a signal asked to stop before the end.

    Raises:
        ValueError: for settings and jets that do not fit each other.
        RunError: if the run folder holds something else.
    """
    if settings.kind not in KINDS:
        raise ValueError(f"unknown tokeniser {settings.kind!r}: choose one of {', '.join(KINDS)}")
    train, val = open_splits(settings.data)
    features = settings.features
    if features is None:
        features = DEFAULT if train.field("tracks") is not None else DEFAULT[:3]
    check_features(features)
    if set(features) & set(TRACKS) and train.field("tracks") is None:
        raise ValueError(f"{train.folder} has no tracks: {', '.join(features)} cannot be read")
    run, state, error = None, None, None
    if world.is_main:
        try:
            run = Run(settings.out)
            run.open(
                {**asdict(settings), "data": str(settings.data), "out": str(settings.out)},
                {
                    **{k: v for k, v in asdict(settings).items() if k not in ("data", "out")},
                    "features": list(features),
                    "train_data": train.fingerprint,
                },
            )
            state = run.load_latest()
        except (RunError, OSError) as problem:
            error = str(problem)
    try:
        error, state = world.share((error, state))
        if error is not None:
            raise RunError(error)
        tokenizer = _fit(settings, features, train, world, run, state)
        if tokenizer is not None and run is not None and run.done is None:
            _finish(settings, tokenizer, val or train, run)
        elif tokenizer is not None and run is not None:
            print(f"{run.path} is finished: fingerprint {tokenizer.fingerprint[:16]}")
        return tokenizer
    finally:
        if run is not None:
            run.close()


def load_tokenizer(source: Path | str) -> Tokenizer:
    """The tokeniser in a run folder of ``jetkern tokenize``.

    Raises:
        RunError: if there is none, it is damaged, or its fit has not ended.
    """
    folder = Path(source)
    state = read_checkpoint(find_checkpoint(folder))
    if not (folder / "DONE").exists() or state.get("kmeans", ""):
        raise RunError(f"{folder} is not a tokeniser whose fit has ended")
    return _tokenizer_of(state, folder)


def _tokenizer_of(state: dict[str, Any], folder: Path) -> Tokenizer:
    try:
        scale = QuantileNormal(state["quantiles"])
        return Tokenizer(list(state["features"]), scale, state["codes"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder} is no tokeniser: {explain(error)}") from error


def _fit(
    settings: TokenizeSettings,
    features: tuple[str, ...],
    train: Shards,
    world: World,
    run: Run | None,
    state: dict[str, Any] | None,
) -> Tokenizer | None:
    if state is not None and "codes" in state:
        return _tokenizer_of(state, settings.out)
    if state is None:
        scale = _fit_scale(settings, features, train)
    else:
        scale = _tokenizer_of({**state, "codes": torch.zeros(0, len(features))}, settings.out).scale
    tokenizer = Tokenizer(features, scale, torch.zeros(0, len(features))).to(world.device)
    step = 0
    if settings.kind == "kmeans":
        kmeans = _kmeans(settings, tokenizer, train, world, run, state)
        if kmeans is None:
            return None
        step = kmeans.updates
        tokenizer = Tokenizer(features, tokenizer.scale, kmeans.codes)
    if run is not None:
        run.save(step + 1, _state(step + 1, tokenizer), {"fingerprint": tokenizer.fingerprint})
    return tokenizer


def _state(step: int, tokenizer: Tokenizer) -> dict[str, Any]:
    cpu = tokenizer.cpu()
    return {
        "step": step,
        "features": list(cpu.features),
        "quantiles": cpu.scale.quantiles,
        "codes": cpu.codes,
    }


def _some(
    shards: Shards, jets: int, settings: TokenizeSettings, tokenizer: Tokenizer | None = None
) -> Jets:
    """The first so many of a shuffle, the same in every process; fewer if there are no more."""
    number = min(jets, shards.num_jets)
    fields = None if tokenizer is None else tokenizer.fields
    stream = Stream(shards, batch_size=number, seed=settings.seed, fields=fields, prefetch=0)
    return next(iter(stream))


def _fit_scale(
    settings: TokenizeSettings, features: tuple[str, ...], train: Shards
) -> QuantileNormal:
    blank = Tokenizer.blank(features, 0)
    values, known = blank.values(_some(train, settings.scale_jets, settings, blank))
    columns = [v[k].numpy() for v, k in zip(values.T, known.T, strict=True)]
    for name, column in zip(features, columns, strict=True):
        if not len(column):
            raise ValueError(f"{train.folder}: no particle has a {name} to fit a scale to")
    return QuantileNormal.fit(columns)


def _kmeans(
    settings: TokenizeSettings,
    tokenizer: Tokenizer,
    train: Shards,
    world: World,
    run: Run | None,
    state: dict[str, Any] | None,
) -> KMeans | None:
    """The fitted codes, or None if a signal came first."""
    size, codes = settings.batch_size, settings.codes
    per_batch = max(1.0, size * train.num_particles / train.num_jets)
    steps = settings.steps or max(50, round(PARTICLES_PER_CODE * codes / per_batch))
    jets = max(size, int(8 * codes * train.num_jets / max(1, train.num_particles)))
    pool = tokenizer.scaled(_some(train, jets, settings, tokenizer).to(world.device))[0]
    kmeans = KMeans(
        pool,
        codes,
        settings.seed,
        every=max(1, round(PER_ROUND * codes / per_batch)),
        until=int(REPLACING * steps),
    )
    stream = Stream(
        train,
        batch_size=size,
        seed=settings.seed,
        rank=world.rank,
        world_size=world.size,
        fields=tokenizer.fields,
    )
    if state is not None:
        try:
            kmeans.load_state(state["kmeans"])
            stream.load_state(state["stream"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{settings.out}: the fit cannot continue: {explain(error)}") from error

    def save() -> None:
        if run is not None:
            whole = {k: v for k, v in _state(kmeans.updates, tokenizer).items() if k != "codes"}
            kept = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in kmeans.state().items()}
            run.save(kmeans.updates, {**whole, "kmeans": kept, "stream": stream.state()}, {})
            tokenizer.to(world.device)

    saved = time.monotonic()
    batches = iter(stream)
    with (
        StopSignal() as stop,
        tqdm(
            total=steps,
            initial=kmeans.updates,
            unit="updates",
            disable=None if world.is_main else True,
        ) as bar,
    ):
        while kmeans.updates < steps:
            points = tokenizer.scaled(next(batches).to(world.device))[0]
            kmeans.update(world.sum(kmeans.sums(points)))
            bar.update()
            stopping = world.any(stop.requested)
            if stopping or time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
            if stopping and kmeans.updates < steps:
                if world.is_main:
                    print(f"stopped after update {kmeans.updates}: the same command continues")
                return None
    return kmeans


def _finish(settings: TokenizeSettings, tokenizer: Tokenizer, shards: Shards, run: Run) -> None:
    """Writes the report, and last the file DONE."""
    record: dict[str, Any] = {"fingerprint": tokenizer.fingerprint, "jets": str(shards.folder)}
    if len(tokenizer.codes):
        jets = _some(shards, settings.report_jets, settings, tokenizer)
        found: Quality = quality(tokenizer, jets)
        record |= asdict(found)
        show(f"{quality_table(found)}\n")
        write_atomically(run.path / "table.md", f"{quality_table(found)}\n".encode())
    write_atomically(run.path / "report.json", json.dumps(record, indent=2).encode())
    run.finish(reason="fitted", step=int(find_checkpoint(run.path).name.rsplit("-", 1)[1]))
    print(f"{run.path}: fingerprint {tokenizer.fingerprint[:16]}")
