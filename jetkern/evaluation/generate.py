"""Makes jets with a trained generator and writes them as shards and as JetNet's HDF5.

Generators are velocity fields, which move noise to the particles of jets that are asked for,
decoders of tokens, which draw jets as they come, and decoders of showers
(``jetkern.evaluation.showers``). Jets are made in parts of ``PART`` jets, each a
file below OUT/parts that is there whole or not at all; a jet's noise is a function of (seed, its
number). So a run that was killed continues, on any number of processes, and ends with the same
bytes. When all parts are there the main process writes
OUT/shards (exact) and OUT/jetnet/<type><P>.hdf5 (JetNet's columns, of massless particles; the jets'
own pT, eta and mass), of showers OUT/showers/showers_NNNN.h5 in ShowerData's layout, and last
OUT/generated.json, which says what they were made with.
"""

from __future__ import annotations

import io
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.data import Shards, Stream
from jetkern.data.shards import MAX_PARTICLES
from jetkern.evaluation.conditions import jets_to_make, load_conditions, outside
from jetkern.evaluation.files import Made, write_jetnet, write_sets
from jetkern.evaluation.showers import ShowerMaker
from jetkern.io import (
    LOCK,
    FileError,
    locked,
    prepare_folder,
    read_json,
    remove_leftovers,
    say,
    write_atomically,
)
from jetkern.jets import Jets, offsets_from_counts
from jetkern.machine import environment
from jetkern.model.columns import track_scale, without_columns
from jetkern.model.config import PETConfig, fields_of, noise_of
from jetkern.model.epic import EPiC, EPiCConfig
from jetkern.model.jet_decoder import JetDecoder
from jetkern.model.layers import set_precision
from jetkern.model.pet import PET
from jetkern.sampling import (
    FLOW_MAP,
    SLOTS,
    Drawing,
    SamplingError,
    Scheme,
    Velocity,
    check_draws_jets,
    field_of,
    fit,
    generate_jets,
    guided,
    noise_jets,
    sample,
    trajectory,
    with_evaluations,
)
from jetkern.training.distributed import World
from jetkern.training.weights import Weights, any_config, load_model, load_weights

PART = 2000  # jets of a part, and of a shard
EVALUATIONS = 12  # of the fitted scheme
BATCH_SIZE = 256  # jets of a pass of a velocity field
FITTED_ON = 200  # jets of the reference that a scheme is fitted to
SAMPLER = "sampler.json"
RECORD = "generated.json"
MODEL = Path("model")  # as conditions: those of the run's own model of them


OF_FIELDS = ("conditions", "jets_per_type", "solver", "evaluations", "guidance", "batch_size")
OF_DECODERS = ("temperature", "top_k", "top_p", "max_particles", "slots")
TAKEN = {  # settings by the kind of the model
    "velocity fields": OF_FIELDS,
    "decoders of tokens": OF_DECODERS,
    "decoders of showers": ("conditions", "energies", *OF_DECODERS),
}


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """What to generate, from what; the result is a function of these but for ``device`` and, to the
    bit on a CPU, ``slots``.

    None stands for a default: of solver and evaluations what ``default_scheme`` says. Which are of
    which kind of model, ``TAKEN`` says.
    """

    source: Path
    out: Path
    num_jets: int | None = None
    conditions: Path | None = None
    jets_per_type: str | None = None
    solver: str | None = None
    evaluations: int | None = None
    guidance: float | None = None
    batch_size: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_particles: int | None = None
    slots: int | None = None
    energies: str | None = None
    seed: int = 0
    precision: str = "ieee"
    device: str = "auto"

    @property
    def drawing(self) -> Drawing:
        """How a decoder draws."""
        given = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p")}
        return Drawing(**{name: value for name, value in given.items() if value is not None})


def load_generator(source: Path | str) -> tuple[Any, Weights]:
    """The velocity field of a run or checkpoint, its averaged weights if it has them.

    Raises:
        RunError: if there is no such checkpoint.
        SamplingError: if it has no generator, or one that needs what is not generated.
    """
    weights = load_weights(source)
    return _generator_of(weights), weights


def _generator_of(weights: Weights) -> PET | EPiC:
    model = load_model(weights)
    try:
        field_of(model)
    except SamplingError as error:
        raise SamplingError(f"{weights.path}: {error}") from error
    assert isinstance(model, PET | EPiC)
    return model.eval()


class Maker(Protocol):
    """What makes the jets of a folder.

    Attributes:
        jets: how many; part: of a file of its own until all are there.
        identity: what they are a function of, in JSON's types.
    """

    jets: int
    identity: dict[str, Any]

    @property
    def part(self) -> int: ...

    def make(self, numbers: range, progress: bool) -> Made:
        """Jets of these numbers."""

    def write(self, out: Path, rows: torch.Tensor, counts: torch.Tensor) -> None:
        """Writes the files of all jets, from what ``make`` made of them."""

    def record(self, counts: torch.Tensor, cut: torch.Tensor) -> dict[str, Any]:
        """What generated.json says besides ``identity``."""


class _OfJets(ABC):
    """What makers of jets have in common.

    Attributes:
        classes, condition, columns: names of types, conditions and columns but kinematics.
    """

    classes: tuple[str, ...]
    condition: tuple[str, ...]
    columns: tuple[str, ...]
    identity: dict[str, Any]

    @property
    def part(self) -> int:
        return PART

    @abstractmethod
    def told(self, counts: torch.Tensor) -> Jets:
        """All jets with labels and conditions but without their particles, given their numbers."""

    def write(self, out: Path, rows: torch.Tensor, counts: torch.Tensor) -> None:
        jets, scale = self.told(counts).replace(particles=rows[:, :4].contiguous()), "tanh"
        fields = fields_of(self.columns)
        if "pid" in fields:
            jets = jets.replace(pid=rows[:, 4].long())
        if "tracks" in fields:
            jets = jets.replace(tracks=rows[:, -4:].contiguous())
            scale = track_scale(self.columns)
        source = {"generated": self.identity}
        write_sets(
            out / "shards", jets, self.classes, self.condition, source, track_scale=scale,
            per_shard=PART, per_block=PART,
        )  # fmt: skip
        write_jetnet(out / "jetnet", jets, self.classes or ("all",))

    def record(self, counts: torch.Tensor, cut: torch.Tensor) -> dict[str, Any]:
        return {}


class _Field(_OfJets):
    """A velocity field and the jets that it imitates."""

    def __init__(self, settings: GenerateSettings, weights: Weights, world: World) -> None:
        model = _generator_of(weights)
        set_precision(model, settings.precision)
        velocity = field_of(model.to(world.device))
        self.request = _request(settings, weights)
        if world.is_main:
            _warn(weights, self.request)
        self.wanted = self.request.jets
        guidance = 1.0 if settings.guidance is None else settings.guidance
        self.field = velocity if guidance == 1 else guided(velocity, guidance)
        if guidance != 1 and model.config.few_steps:
            raise SamplingError(f"{weights.path}: a distilled model takes no guidance")
        self.scheme = _scheme(settings, self.field, weights, self.wanted, world)
        self.jets, self.columns = len(self.wanted), model.config.columns
        self.classes, self.seed, self.device = self.request.classes, settings.seed, world.device
        self.condition = self.request.condition if self.wanted.condition is not None else ()
        self.batch_size = settings.batch_size or BATCH_SIZE
        self.statistics = noise_of(model.config)
        self.identity = {
            "weights": weights.sha256,
            "conditions": self.request.fingerprint,
            "jets": self.jets,
            "scheme": self.scheme.as_json(),
            "guidance": guidance,
            "seed": settings.seed,
            "precision": settings.precision,
            "batch_size": self.batch_size,
        }

    def make(self, numbers: range, progress: bool) -> Made:
        some = self.wanted.select(slice(numbers.start, numbers.stop))
        start = noise_jets(
            some.counts,
            seed=self.seed,
            index=some.index,
            label=some.label,
            condition=some.condition,
            statistics=self.statistics,
        ).to(self.device)
        made = sample(
            self.field, start, self.scheme, batch_size=self.batch_size, progress=progress
        ).to("cpu")
        cut = torch.zeros(len(made), dtype=torch.bool)
        return Made(_as_rows(without_columns(made, self.columns)), made.counts, cut)

    def told(self, counts: torch.Tensor) -> Jets:
        return self.wanted


class _Decoder(_OfJets):
    """A decoder of tokens with its tokeniser, whose jets have no types and no conditions."""

    classes: tuple[str, ...] = ()
    condition: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def __init__(self, settings: GenerateSettings, weights: Weights, world: World) -> None:
        model = load_model(weights)
        assert isinstance(model, JetDecoder)
        try:
            check_draws_jets(model)
        except SamplingError as error:
            raise SamplingError(f"{weights.path}: {error}") from error
        if settings.num_jets is None:
            raise ValueError("a decoder of tokens needs --num-jets: it imitates no jets")
        set_precision(model, settings.precision)
        self.model, self.jets = model.to(world.device).eval(), settings.num_jets
        self.drawing = settings.drawing
        self.most = settings.max_particles or MAX_PARTICLES
        if self.most > MAX_PARTICLES:
            raise ValueError(f"jets of shards have at most {MAX_PARTICLES} particles: {self.most}")
        self.seed, self.slots = settings.seed, settings.slots or SLOTS
        self.identity = {
            "weights": weights.sha256,
            "tokenizer": model.tokenizer.fingerprint,
            "jets": self.jets,
            **self.drawing.as_json(),
            "max_particles": self.most,
            "seed": settings.seed,
            "precision": settings.precision,
        }

    def make(self, numbers: range, progress: bool) -> Made:
        made, cut = generate_jets(
            self.model,
            torch.arange(numbers.start, numbers.stop),
            seed=self.seed,
            max_particles=self.most,
            slots=self.slots,
            drawing=self.drawing,
            progress=progress,
        )
        made = made.to("cpu")
        return Made(_as_rows(made), made.counts, cut.cpu())

    def told(self, counts: torch.Tensor) -> Jets:
        offsets = offsets_from_counts(counts)
        return Jets(particles=torch.zeros(int(offsets[-1]), 4), offsets=offsets)

    def record(self, counts: torch.Tensor, cut: torch.Tensor) -> dict[str, Any]:
        return {"cut": int(cut.sum()), "empty": int((counts == 0).sum())}


def generate(settings: GenerateSettings, world: World) -> Shards | None:
    """Makes the jets of this process, and in the main one the files.

    Returns:
        The shards, in the main process.

    Raises:
        ValueError: for settings that the model does not take or that do not fit it, or a folder of
            other jets.
    """
    maker = _maker(settings, world)
    parts = settings.out / "parts"
    with ExitStack() as stack:
        if world.is_main:
            prepare_folder(settings.out)
            stack.enter_context(locked(settings.out))
            _open(settings.out, maker.identity)
        world.share(None)
        numbers = range(-(-maker.jets // maker.part))
        for number in numbers[world.rank :: world.size]:
            path = _part(parts, number)
            if path.exists() or (settings.out / RECORD).exists():
                continue
            some = range(maker.jets)[number * maker.part : (number + 1) * maker.part]
            content = io.BytesIO()  # written by NumPy, a full disk would have no name
            for array in maker.make(some, world.is_main):
                np.save(content, array.numpy(), allow_pickle=False)
            write_atomically(path, content.getvalue())
        world.any(False)  # all parts are there
        if not world.is_main:
            return None
        if not (settings.out / RECORD).exists():
            _assemble(settings.out, maker)
        return Shards(settings.out / "shards")


def _maker(settings: GenerateSettings, world: World) -> Maker:
    """Of the kind of the model, for settings that are of this kind."""
    weights = load_weights(settings.source)
    makers: dict[str, tuple[str, Callable[[GenerateSettings, Weights, World], Maker]]] = {
        "decoder": ("decoders of tokens", _Decoder),
        "showers": ("decoders of showers", ShowerMaker),
    }
    kind, maker = makers.get(weights.kind) or ("velocity fields", _Field)
    for name in dict.fromkeys(name for names in TAKEN.values() for name in names):
        if getattr(settings, name) is not None and name not in TAKEN[kind]:
            others = [other for other, names in TAKEN.items() if name in names]
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} is for {' and '.join(others)}, {weights.path} is one of the {kind}"
            )
    return maker(settings, weights, world)


def is_generated(folder: Path) -> bool:
    """Whether it is a finished folder of ``generate``."""
    return (folder / RECORD).is_file()


def read_generated(folder: Path) -> tuple[Shards, int | None]:
    """The jets of a finished folder, and the evaluations of the network that made each, None of a
    decoder's.

    Raises:
        FileError: if its record is none.
    """
    record = read_json(folder / RECORD, error=FileError)
    known = "scheme" in record.content
    evaluations = len(record.record("scheme").content["times"]) if known else None
    return Shards(folder / "shards"), evaluations


def remarks(folder: Path) -> str:
    """What is odd about the jets of a finished folder, for the user: how many were cut at the most
    particles that they may have, or have other conditions than the model was trained with.

    Raises:
        FileError: if its record is none.
    """
    record = read_json(folder / RECORD, error=FileError).content
    cut, outside = record.get("cut", 0), record.get("outside", 0)
    what = Shards(folder / "shards").words[1]
    found = [f"{cut:,} of them cut at {record.get('max_particles')} {what}"] if cut else []
    found += [f"{outside:,} of them of energies that the model has not seen"] if outside else []
    return "".join(f", {remark}" for remark in found)


@dataclass(frozen=True)
class Request:
    """Jets to be made, their particles yet unknown; names of types and conditions; their origin."""

    jets: Jets
    classes: tuple[str, ...]
    condition: tuple[str, ...]
    fingerprint: str


def _request(settings: GenerateSettings, weights: Weights) -> Request:
    if settings.conditions is None:
        raise ValueError("a velocity field needs --conditions: a folder of shards, or model")
    if settings.conditions != MODEL:
        if settings.jets_per_type is not None:
            raise ValueError("--jets-per-type goes with --conditions model; say --num-jets")
        shards = Shards(settings.conditions)
        shards.check_jets("a velocity field")
        jets = first_jets(shards, settings.num_jets)
        return Request(jets, shards.classes, shards.condition, shards.fingerprint)
    if settings.jets_per_type is None or settings.num_jets is not None:
        raise ValueError("--conditions model goes with --jets-per-type, such as 1000 or g=500,t=20")
    model, classes, names, digest = load_conditions(weights.path.parent.parent)
    numbers = jets_per_type(settings.jets_per_type, classes)
    return Request(jets_to_make(model, names, numbers, seed=settings.seed), classes, names, digest)


def _warn(weights: Weights, request: Request) -> None:
    """Says which jets a run was not trained for: what it makes of these is a guess."""
    run = weights.path.parent.parent
    found = outside(run, request.jets, request.condition, request.classes)
    if found:
        what = ", ".join(f"{name} of {count:,}" for name, count in found.items())
        say(f"of {len(request.jets):,} jets beyond what {run} was trained on: {what}")


def jets_per_type(text: str, classes: tuple[str, ...]) -> list[int]:
    """Numbers of jets by type: one for all types, or ``NAME=N`` for some, joined by commas.

    Raises:
        ValueError: naming the word that is neither, or no type.
    """
    chosen: dict[str, str] = {}
    for word in text.split(","):
        name, equals, number = word.partition("=")
        chosen |= {name: number} if equals else dict.fromkeys(classes, word)
    for name, number in chosen.items():
        if name not in classes:
            raise ValueError(f"--jets-per-type: the types are {', '.join(classes)}, not {name}")
        if not number.isdecimal():
            raise ValueError(f"--jets-per-type: {number!r} is not a number of jets")
    numbers = [int(chosen.get(name, 0)) for name in classes]
    if not sum(numbers):
        raise ValueError("--jets-per-type asks for no jets")
    return numbers


def first_jets(shards: Shards, num_jets: int | None = None, fields: tuple[str, ...] = ()) -> Any:
    """The first jets, or clouds, in the order of the files, numbered from 0; all by default.

    Args:
        shards: the folder; num_jets: how many; fields: optional ones to read, such as pid.

    Raises:
        ValueError: if there are fewer.
    """
    if num_jets is not None and not 1 <= num_jets <= shards.num_jets:
        raise ValueError(f"{shards.folder} has {shards.num_jets} jets, {num_jets} are asked for")
    stream = Stream(shards, batch_size=PART, shuffle=False, epochs=1, fields=fields, num_jets=None)
    found, total = [], 0
    for jets in stream:
        found.append(jets)
        total += len(jets)
        if num_jets is not None and total >= num_jets:
            break
    everything = type(found[0]).concat(found).select(slice(0, num_jets))
    return everything.replace(index=torch.arange(len(everything)))


def default_scheme(
    config: PETConfig | EPiCConfig, solver: str | None = None, evaluations: int | None = None
) -> tuple[str, int]:
    """The solver and number of evaluations for a model, where they are not given.

    Of a distilled model its own; of another 12 evaluations of the fitted scheme.

    Raises:
        SamplingError: for a distilled model and others than those it was made for.
    """
    if not config.few_steps:
        return solver or "fitted", evaluations or EVALUATIONS
    solver, evaluations = solver or FLOW_MAP, evaluations or max(config.few_steps)
    if solver != FLOW_MAP or evaluations not in config.few_steps:
        known = ", ".join(map(str, config.few_steps))
        raise SamplingError(
            f"{solver} with {evaluations} evaluations: this model was distilled for {FLOW_MAP} "
            f"with {known}"
        )
    return solver, evaluations


def _scheme(
    settings: GenerateSettings, velocity: Velocity, weights: Weights, wanted: Jets, world: World
) -> Scheme:
    """The solver that was asked for; a fitted one is kept beside the checkpoint."""
    config = any_config(weights)
    assert isinstance(config, PETConfig | EPiCConfig)
    solver, evaluations = default_scheme(config, settings.solver, settings.evaluations)
    if solver != "fitted":
        return with_evaluations(solver, evaluations)
    scheme: Scheme | None = None
    if world.is_main:
        path = weights.path.parent.parent / SAMPLER
        known: dict[str, Any] = {}
        if path.exists():
            stored = json.loads(path.read_text())
            known = stored["schemes"] if stored.get("weights") == weights.sha256 else {}
        name = str(evaluations)
        if settings.guidance not in (None, 1):
            name += f", guidance {settings.guidance}"
        if name not in known:
            some = wanted.select(slice(0, FITTED_ON))
            # Noise of other numbers than that of the jets to be made.
            start = noise_jets(
                some.counts,
                seed=~settings.seed,
                label=some.label,
                condition=some.condition,
                statistics=noise_of(config),
            ).to(world.device)
            fitted = fit(velocity, trajectory(velocity, start), evaluations)
            known[name] = fitted.as_json()
            content = {"weights": weights.sha256, "schemes": known}
            write_atomically(path, json.dumps(content, indent=1).encode())
        scheme = Scheme.from_json(known[name])
    scheme = world.share(scheme)
    assert scheme is not None
    return scheme


def _open(out: Path, identity: dict[str, Any]) -> None:
    """Makes the folder, or makes sure that it is of the same jets."""
    path = out / "request.json"
    if path.exists():
        old = {"precision": "ieee"} | json.loads(path.read_text())
        changes = [k for k in identity if old.get(k) != identity[k]]
        if changes:
            raise FileError(
                f"{out} holds jets made with another {', '.join(changes)}: use another --out"
            )
    # One that was killed before anything was there has left what remove_leftovers takes away.
    elif any(p.name != LOCK and not p.match(".*.part") for p in out.iterdir()):
        raise FileError(f"{out} is not empty and holds no generated jets")
    else:
        write_atomically(path, json.dumps(identity).encode())
    if (out / RECORD).exists():
        shutil.rmtree(out / "parts", ignore_errors=True)
    else:
        (out / "parts").mkdir(exist_ok=True)
    for folder in (out, *(p for p in out.iterdir() if p.is_dir())):
        remove_leftovers(folder)


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:06d}.npy"


def _as_rows(jets: Jets) -> torch.Tensor:
    """(T, 4 + ...) particles, each jet's in descending pT, identities and tracks."""
    order = (-jets.particles[:, 2]).argsort(stable=True)
    rows = [jets.particles]
    if jets.pid is not None:
        rows.append(jets.pid[:, None].to(jets.particles.dtype))
    if jets.tracks is not None:
        rows.append(jets.tracks)
    return torch.cat(rows, 1)[order[jets.jet_of_particle[order].argsort(stable=True)]]


def _assemble(out: Path, maker: Maker) -> None:
    found: list[tuple[NDArray[Any], ...]] = []
    for path in sorted((out / "parts").glob("*.npy")):
        with path.open("rb") as file:
            found.append(tuple(np.load(file, allow_pickle=False) for _ in range(3)))
    rows, counts, cut = (torch.from_numpy(np.concatenate(a)) for a in zip(*found, strict=True))
    maker.write(out, rows, counts)
    record = {**maker.identity, "environment": environment(), **maker.record(counts, cut)}
    write_atomically(out / RECORD, json.dumps(record, indent=1).encode())
    shutil.rmtree(out / "parts")
