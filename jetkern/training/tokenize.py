"""Fitting a tokeniser of particles, or of hits of showers, from shards, and reading it back.

A fit is a run folder as trainings have them: killed at any moment, it is continued by the same
command to the same bits, and for any number of processes.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from jetkern.clouds import Sets
from jetkern.data import Shards, Stream
from jetkern.io import explain, write_atomically
from jetkern.model.vqvae import Shape, VQTokenizer
from jetkern.tables import show
from jetkern.tokenizers import HITS, KINEMATICS, TRACKS, KMeans, QuantileNormal, Tokenizer
from jetkern.tokenizers.bins import bin_centres
from jetkern.tokenizers.report import Quality, quality, quality_table
from jetkern.tokenizers.tokenizer import check_features
from jetkern.training.checkpoints import RunError, find_checkpoint, read_checkpoint
from jetkern.training.distributed import World
from jetkern.training.runs import Run
from jetkern.training.showers import shower_shape
from jetkern.training.signals import StopSignal
from jetkern.training.trainer import open_splits
from jetkern.training.vqvae import VQFit

KINDS = ("kmeans", "vqvae", "bins", "scale")
SAVE_SECONDS = 60.0
VQ_STEPS = 5000  # of a VQ-VAE, unless it is told how many
PARTICLES_PER_CODE = 400  # of the whole fit, unless it is told how many updates to make
PER_ROUND = 20  # particles of a code between looks for dead ones, on average
BATCH_SIZE, OF_SHOWERS = 1024, 64  # jets, or showers, of an update, unless it is told how many
REPLACING = 0.7  # of the updates replace dead codes
DEFAULT = (*KINEMATICS[:3], *TRACKS)


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings:
    """What a tokeniser is fitted to.

    Attributes:
        kind: "kmeans", "vqvae", "bins", or "scale" for a scale alone.
        data: folder with the shard folders train and, to judge it, val.
        out: run folder.
        codes: K; of bins at most so many.
        features: of ``FEATURES``; None for delta eta, delta phi, ln pT and tracks, where the jets
            have them, and for ``HITS`` of showers.
        seed: of the order of the jets and all choices.
        scale_jets: jets that the scale is fitted to.
        batch_size: jets of an update; 0 for 1,024, and 64 of showers.
        steps: updates; None for 400 particles of each code in all, or 5,000 of a VQ-VAE.
        classes: names of those to use; none for all.
        shape: width, blocks and heads of a VQ-VAE's encoder and decoder, and length of a latent.
        report_jets: that it is judged by.
    """

    kind: str
    data: Path
    out: Path
    codes: int = 1024
    features: tuple[str, ...] | None = None
    seed: int = 0
    scale_jets: int = 50_000
    batch_size: int = 0
    steps: int | None = None
    classes: tuple[str, ...] = ()
    report_jets: int = 10_000
    shape: tuple[int, int, int, int] = (128, 3, 8, 32)


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
    train, val = open_splits(settings.data, settings.classes)
    features = _features(settings, train)
    if not settings.batch_size:
        settings = replace(settings, batch_size=OF_SHOWERS if train.points else BATCH_SIZE)
    elsewhere = {"data", "out", "classes"} | ({"shape"} if settings.kind != "vqvae" else set())
    run, state, error = None, None, None
    if world.is_main:
        try:
            run = Run(settings.out)
            run.open(
                {**asdict(settings), "data": str(settings.data), "out": str(settings.out)},
                {
                    **{k: v for k, v in asdict(settings).items() if k not in elsewhere},
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


def _features(settings: TokenizeSettings, train: Shards) -> tuple[str, ...]:
    """What is read of the points of these shards."""
    tracks = train.field("tracks") is not None
    if settings.features is not None:
        features = check_features(settings.features)
    elif train.points:
        features = HITS
    else:
        features = DEFAULT if tracks else DEFAULT[:3]
    points = "hits" if features == HITS else "particles"
    _check_points(features, train, f"a tokeniser of {points}")
    if set(features) & set(TRACKS) and not tracks:
        raise ValueError(f"{train.folder} has no tracks: {', '.join(features)} cannot be read")
    return features


def _check_points(features: tuple[str, ...], train: Shards, user: str) -> None:
    """Raises ValueError for features of particles and shards of showers, or the reverse."""
    if features != HITS:
        train.check_jets(user)
    elif not train.points:
        raise ValueError(f"{train.folder} has jets, {user} needs showers")
    else:
        shower_shape(train)


def load_tokenizer(source: Path | str) -> Tokenizer:
    """The tokeniser in a run folder of ``jetkern tokenize``.

    Raises:
        RunError: if there is none, it is damaged, or its fit has not ended.
    """
    folder = Path(source)
    state = read_checkpoint(find_checkpoint(folder))
    if not (folder / "DONE").exists() or any(state.get(kind) for kind in KINDS):
        raise RunError(f"{folder} is not a tokeniser whose fit has ended")
    return _tokenizer_of(state, folder)


def tokenizer_for(folder: Path | None, train: Shards) -> Tokenizer | None:
    """The tokeniser that a training was told to use, if it was.

    Raises:
        ValueError: if it cannot be read, or reads what the jets do not have.
    """
    if folder is None:
        return None
    tokenizer = load_tokenizer(folder)
    _check_points(tokenizer.features, train, str(folder))
    for name in tokenizer.fields:
        if train.field(name) is None:
            raise ValueError(f"{folder} reads {name}, which the jets of {train.folder} lack")
    return tokenizer


def _tokenizer_of(state: dict[str, Any], folder: Path) -> Tokenizer:
    try:
        scale, features = QuantileNormal(state["quantiles"]), list(state["features"])
        if "shape" not in state:
            return Tokenizer(features, scale, state["codes"])
        found = VQTokenizer(features, scale, state["codes"], state["shape"])
        found.load_state_dict(state["network"])
        return found
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
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
    if settings.kind == "bins":
        centres = bin_centres(settings.codes, len(features))
        tokenizer = Tokenizer(features, scale, centres).to(world.device)
    elif settings.kind != "scale":
        fit = (_kmeans if settings.kind == "kmeans" else _vqvae)(settings, tokenizer, train, world)
        if not _loop(settings, fit, tokenizer, train, world, run, state):
            return None
        step, tokenizer = fit.updates, fit.tokenizer
    if run is not None:
        run.save(step + 1, _state(step + 1, tokenizer), {"fingerprint": tokenizer.fingerprint})
    return tokenizer


def _state(step: int, tokenizer: Tokenizer) -> dict[str, Any]:
    cpu = tokenizer.cpu()
    state = {
        "step": step,
        "features": list(cpu.features),
        "quantiles": cpu.scale.quantiles,
        "codes": cpu.codes,
    }
    if isinstance(cpu, VQTokenizer):
        state |= {"shape": list(cpu.shape), "network": cpu.state_dict()}
    return state


def _some(
    shards: Shards, jets: int, settings: TokenizeSettings, tokenizer: Tokenizer | None = None
) -> Sets:
    """The first so many of a shuffle, the same in every process; fewer if there are no more."""
    number = min(jets, shards.num_jets)
    fields = None if tokenizer is None else tokenizer.fields
    stream = Stream(shards, batch_size=number, seed=settings.seed, fields=fields, prefetch=0)
    found: Sets = next(iter(stream))
    return found


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


class _KMeansFit:
    """k-means codes as they follow the jets of all processes."""

    def __init__(self, kmeans: KMeans, blank: Tokenizer, steps: int, world: World) -> None:
        self.kmeans, self.blank, self.steps, self.world = kmeans, blank, steps, world
        self.state, self.load_state = kmeans.state, kmeans.load_state

    @property
    def updates(self) -> int:
        return self.kmeans.updates

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.blank.features, self.blank.scale, self.kmeans.codes)

    def update(self, jets: Sets) -> None:
        points = self.blank.scaled(jets)[0]
        self.kmeans.update(self.world.sum(self.kmeans.sums(points)))


def _pool(settings: TokenizeSettings, tokenizer: Tokenizer, train: Shards, world: World) -> Sets:
    """Jets with eight particles for each code, the first ones that are found."""
    wanted = int(8 * settings.codes * train.num_jets / max(1, train.num_particles))
    jets = _some(train, max(settings.batch_size, wanted), settings, tokenizer)
    return jets.to(world.device)


def _kmeans(
    settings: TokenizeSettings, tokenizer: Tokenizer, train: Shards, world: World
) -> _KMeansFit:
    size, codes = settings.batch_size, settings.codes
    per_batch = max(1.0, size * train.num_particles / train.num_jets)
    steps = settings.steps or max(50, round(PARTICLES_PER_CODE * codes / per_batch))
    kmeans = KMeans(
        tokenizer.scaled(_pool(settings, tokenizer, train, world))[0],
        codes,
        settings.seed,
        every=max(1, round(PER_ROUND * codes / per_batch)),
        until=int(REPLACING * steps),
    )
    return _KMeansFit(kmeans, tokenizer, steps, world)


def _vqvae(settings: TokenizeSettings, tokenizer: Tokenizer, train: Shards, world: World) -> VQFit:
    torch.manual_seed(settings.seed)
    none = torch.zeros(0, Shape(*settings.shape).latent)
    networks = VQTokenizer(tokenizer.features, tokenizer.scale, none, settings.shape)
    pool = _pool(settings, tokenizer, train, world)
    return VQFit(
        networks.to(world.device),
        pool,
        settings.codes,
        settings.seed,
        steps=settings.steps or VQ_STEPS,
        world=world,
    )


def _loop(
    settings: TokenizeSettings,
    fit: _KMeansFit | VQFit,
    tokenizer: Tokenizer,
    train: Shards,
    world: World,
    run: Run | None,
    state: dict[str, Any] | None,
) -> bool:
    """Fits to the end; false if a signal came first."""
    stream = Stream(
        train,
        batch_size=settings.batch_size,
        seed=settings.seed,
        rank=world.rank,
        world_size=world.size,
        fields=tokenizer.fields,
    )
    if state is not None:
        try:
            fit.load_state(state[settings.kind])
            stream.load_state(state["stream"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{settings.out}: the fit cannot continue: {explain(error)}") from error

    def save() -> None:
        if run is not None:
            whole = {k: v for k, v in _state(fit.updates, tokenizer).items() if k != "codes"}
            kept = {settings.kind: _on_cpu(fit.state()), "stream": stream.state()}
            run.save(fit.updates, {**whole, **kept}, {})
            tokenizer.to(world.device)

    saved = time.monotonic()
    batches = iter(stream)
    with (
        StopSignal() as stop,
        tqdm(
            total=fit.steps,
            initial=fit.updates,
            unit="updates",
            disable=None if world.is_main else True,
        ) as bar,
    ):
        while fit.updates < fit.steps:
            fit.update(next(batches).to(world.device))
            bar.update()
            stopping = world.any(stop.requested)
            if stopping or time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
            if stopping and fit.updates < fit.steps:
                if world.is_main:
                    print(f"stopped after update {fit.updates}: the same command continues")
                return False
    return True


def _on_cpu(value: Any) -> Any:
    """The same nested values with their tensors on the CPU."""
    if isinstance(value, dict):
        return {k: _on_cpu(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_on_cpu(v) for v in value]
    return value.cpu() if isinstance(value, Tensor) else value


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
