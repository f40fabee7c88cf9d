"""Typed settings of the recipes; ``defaults`` has the values that they begin with.

The docstrings of the fields are the text of ``--help``; ``jetkern.cli.settings`` reads flags and
files.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jetkern.data.order import MAX_SEED
from jetkern.machine import MAX_THREADS
from jetkern.model.epic import EPIC_SIZES
from jetkern.model.presets import MASKED_SIZES
from jetkern.objectives import parse_objective
from jetkern.objectives.masking import MASK_FRACTION
from jetkern.objectives.targets import parse_targets
from jetkern.objectives.views import Masked

Preset = Literal[
    "micro", "small", "medium", "large", "mpm-v1", "mpm-v2", "omnijet", "epic", "epic-small",
    "spade", "combined", "omnijet-c",
]  # fmt: skip
UNSET = Path()  # where nobody has said which


class SettingsError(ValueError):
    """Settings that cannot be used: the user's to correct."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """The optimisation; a run continues only with the same values."""

    optimizer: Literal["lion", "ranger", "adamw"] = "lion"
    """lion, ranger (RAdam with lookahead) or adamw"""
    lr: float = 1e-4
    """peak learning rate"""
    weight_decay: float = 0.1
    """decoupled; not applied to norms and tokens"""
    betas: tuple[float, float] = (0.95, 0.99)
    """decay of the moments"""
    clip: float = 1.0
    """largest norm of the gradient"""
    batch_size: int = 1024
    """jets of an update, over all processes"""
    steps: int = 10_000
    """updates of the whole training"""
    warmup_steps: int = 0
    """updates of linear warm-up; a cosine to zero follows"""
    precision: Literal["ieee", "tf32", "bf16"] = "ieee"
    """what products may be rounded to; weights, features and sums stay float32"""
    ema_decay: float | None = None
    """validate and keep an exponential average of the weights with this decay, such as 0.999; it is
    at most (1 + n) / (10 + n) at update n"""

    def __post_init__(self) -> None:
        for name in ("lr", "clip", "batch_size", "steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not math.isfinite(self.lr):
            raise ValueError(f"lr must be a finite number, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and from 0, got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup_steps must lie in 0..{self.steps}, got {self.warmup_steps}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in (0, 1), got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """Validation and early stopping; a run continues only with the same values."""

    val_every: int = 1000
    """updates between validations"""
    val_jets: int | None = None
    """jets of a validation; None for all"""
    patience: int | None = None
    """stop after so many validations without a new best loss; None never stops"""

    def __post_init__(self) -> None:
        for name in ("val_every", "val_jets", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where and how the training runs; free to change when it continues."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    micro_batch: int | None = None
    """jets per pass of a process, to save memory; gradients of the passes are summed"""
    threads: int | None = None
    """CPU threads of torch; None for its default"""
    prefetch: int = 2
    """batches prepared ahead"""
    graph: bool = False
    """on a GPU: an update is one CUDA graph, in several processes two, where that can be;
    otherwise it is said why not"""
    log_every: int = 10
    """updates between log records"""
    save_every: int = 1000
    """updates between checkpoints"""
    save_minutes: float = 15.0
    """minutes between checkpoints, if that is sooner"""
    keep_last: int = 2
    """checkpoints kept besides the best"""
    keep_every: int | None = None
    """keep also the checkpoints after each so many updates, and make them"""
    allow_mismatch: bool = False
    """continue a run although its settings or data differ"""

    def __post_init__(self) -> None:
        for name in ("log_every", "save_every", "save_minutes", "keep_last"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("micro_batch", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        _check_threads(self.threads)
        if self.prefetch < 0:
            raise ValueError(f"prefetch must not be negative, got {self.prefetch}")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What every training needs."""

    data: Path
    """folder with the shard folders train and, for validation, val"""
    out: Path
    """run folder; the same command again continues the run in it"""
    seed: int = 0
    """of initial weights, order of the jets, chosen subset, noise, masks and dropout"""
    num_jets: int | None = None
    """train on so many jets, a random subset; None for all"""
    classes: tuple[str, ...] = ()
    """use jets of these classes alone, numbered in this order; none named: all"""
    plugin: tuple[str, ...] = ()
    """Python files or modules of yours that register losses, heads or tasks"""
    optim: OptimSettings = field(default_factory=OptimSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        if self.num_jets is not None and self.num_jets < 1:
            raise ValueError(f"num_jets must be at least 1, got {self.num_jets}")
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class MaskedSettings:
    """Masked particle modelling; the defaults are the study's."""

    target: str = "regression"
    """what is predicted of hidden particles: regression, identity, tokens, cfm, cnf, ssfm, or a sum
    of some, as regression+identity:0.3"""
    mask_fraction: tuple[float, ...] = (MASK_FRACTION,)
    """fraction of a jet's particles that is hidden; two numbers: drawn between them for each jet"""
    mask_tokens: Literal["rank", "shared"] = "rank"
    """what hidden particles are in the decoder: rank, a vector for each rank in pT among them, or
    shared, one for all"""
    decoder_dim: int | None = None
    """width of the decoder; by default that of the body"""
    decoder_layers: int | None = None
    """blocks of the decoder; by default those of each task head"""
    decoder_heads: int | None = None
    """attention heads of the decoder; by default those of the body"""
    registers: int = 4
    """tokens in front of each jet, which decoder and classifier read, too"""
    label_smoothing: float = 0.0
    """of identities and tokens"""
    neutral_tracks: Literal["none", "noise"] = "none"
    """tracks of particles without one: none, they have no loss, or noise, random numbers to predict
    as in the code of MPMv2"""

    def __post_init__(self) -> None:
        parse_targets(self.target)
        if len(self.mask_fraction) not in (1, 2):
            raise ValueError(f"mask_fraction is one number or two, got {self.mask_fraction}")
        Masked(self.mask_fraction[0], self.mask_fraction[-1])
        for name in ("decoder_dim", "decoder_heads", "registers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(TrainSettings):
    """Pre-training of a jet foundation model."""

    preset: Preset = "micro"
    """model size; sets the defaults of the optimisation; mpm-v1 and mpm-v2 also those of masked
    particle modelling (docs/masked.md), omnijet next-token, epic and epic-small the generator of
    EPiC-FM (docs/generation.md), spade, combined and omnijet-c next-token of showers
    (docs/showers.md)"""
    objective: str = "pretrain"
    """any of classifier, generator, mpm joined with +; pretrain for all three; or next-token, a
    causal model of the particles' tokens (docs/tokens.md) or of the hits of showers"""
    tokenizer: Path | None = None
    """folder of jetkern tokenize: tokens for next-token; the normal scale and the codes of mpm's
    targets, where None takes the four numbers as they are stored"""
    inputs: Literal["tokens", "features"] = "tokens"
    """what a model of next-token reads: the tokens, or the numbers that they stand for"""
    columns: str | None = None
    """generator: what it makes of a particle, kinematics joined with any of identity and tracks, as
    kinematics+identity; all that the jets have with epic, by default"""
    velocity_units: Literal["features", "noise"] | None = None
    """generator: units of its errors: features as they are, the study's and the default, or noise,
    its widths, with which short trainings learn the angles, too (docs/generation.md)"""
    perturbed: bool = True
    """train the classifier on noised and masked jets too (Eq. 4 of the paper)"""
    feature_drop: float = 0.1
    """probability that a jet's particle identities, or its tracks, are dropped"""
    masked: MaskedSettings = field(default_factory=MaskedSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = parse_objective(self.objective)
        if self.masked != MaskedSettings() and "mpm" not in parts:
            raise ValueError(
                f"--objective {self.objective} has no masked particles: settings of these need mpm"
            )
        if self.tokenizer is not None and not {"mpm", "next-token"} & set(parts):
            raise ValueError(f"--objective {self.objective} has no use for a tokeniser")
        if self.inputs != "tokens" and "next-token" not in parts:
            raise ValueError(f"--inputs {self.inputs} is a choice of next-token")
        if self.preset in MASKED_SIZES and "next-token" in parts:
            raise ValueError(f"the preset {self.preset} is of masked particles, not of next-token")
        if parts != ("generator",) and (self.preset in EPIC_SIZES or self.columns is not None):
            what = "columns" if self.columns is not None else f"the preset {self.preset}"
            raise ValueError(f"{what}: for --objective generator alone, not {self.objective}")
        if self.velocity_units is not None and "generator" not in parts:
            raise ValueError(f"--objective {self.objective} has no velocity: --velocity-units")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainSettings):
    """Fine-tuning of a pre-trained model, or training from scratch to compare with."""

    source: Path | None = field(default=None, metadata={"flag": "from"})
    """run or checkpoint of a pre-training; None trains from scratch"""
    preset: Preset | None = None
    """model size; by default that of the checkpoint, or micro from scratch"""
    tokenizer: Path | None = None
    """folder of jetkern tokenize: a decoder from scratch, as pretrain --objective next-token makes
    them; one of a checkpoint brings its own"""
    inputs: Literal["tokens", "features"] | None = None
    """what a decoder reads: the tokens, or the numbers that they stand for; by default as its
    checkpoint, or tokens from scratch"""
    head: Literal["sum", "attention"] | None = None
    """what reads a decoder's rows: their sum, as in OmniJet-alpha, or a learned query that attends
    to them; by default as its checkpoint, or sum"""
    lr_factor: float = 5.0
    """learning rate of the layers that are new, over that of the others"""
    layer_decay: float = 1.0
    """learning rate of each block, over that of the one above it; 1 for the same in all"""
    freeze: Literal["body", "all-but-head"] | None = None
    """keep what comes from the checkpoint: body, or all but each head's perceptron and last layer;
    what is new is trained all the same"""
    thaw_at: int = 0
    """updates that leave the body as it came from the checkpoint; what is new learns from the
    first. Nothing thaws with --freeze or --probe"""
    catch_up: int = 0
    """updates in which the body's learning rate then rises to its own"""
    probe: Literal["linear", "attention"] | None = None
    """train on the features of the body, which stays as it is: linear, one linear layer;
    attention, a learned query that attends to all rows of a jet twice"""
    pool: Literal["token", "mean"] = "token"
    """features of a probe: the global tokens side by side, or the mean over the particles"""
    augment: Literal["rotation"] | None = None
    """rotation: turn each training jet by a random angle about its axis in (eta, phi), and mirror
    every second one, against overfitting; classify, top and flavour of models without tracks"""
    num_classes: int = 2
    """outputs of the classifier (the published runs kept 10)"""
    signal_jets: int | None = None
    """weak: about so many signal jets are hidden in one of two samples of background"""
    label_drop: float = 0.0
    """jetnet: probability that a training jet's type is hidden, such as 0.1, for generate
    --guidance"""
    columns: str | None = None
    """jetnet: what is made of a particle, kinematics joined with any of identity and tracks, as
    kinematics+identity; by default that of the checkpoint, or from scratch all that the jets have
    with epic and kinematics with others"""
    velocity_units: Literal["features", "noise"] | None = None
    """jetnet: units of the velocity's errors: features as they are, the study's, or noise, its
    widths, with which short trainings learn the angles, too; by default the checkpoint's"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lr_factor < math.inf:
            raise ValueError(f"lr_factor must be a finite number above 0, got {self.lr_factor}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        if self.probe is not None and self.freeze is not None:
            raise ValueError("a probe freezes the body by itself: give --freeze or --probe")
        if self.freeze is not None and self.source is None:
            raise ValueError("freeze keeps what comes from a checkpoint: --from names one")
        for name in ("thaw_at", "catch_up"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.thaw_at and self.source is None:
            raise ValueError("thaw_at keeps what comes from a checkpoint: --from names one")
        if self.catch_up and not self.thaw_at:
            raise ValueError("catch_up is what follows thaw_at: give both")
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")
        if not 0 <= self.label_drop < 1:
            raise ValueError(f"label_drop must lie in [0, 1), got {self.label_drop}")
        if self.signal_jets is not None and self.signal_jets < 0:
            raise ValueError(f"signal_jets must not be negative, got {self.signal_jets}")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Evaluation of classifiers on labelled jets."""

    runs: tuple[Path, ...] = field(metadata={"positional": True})
    """runs or checkpoints; of a run, the best checkpoint; jetnet: also folders of generate"""
    data: Path
    """folder with the shard folders of the splits"""
    out: Path
    """folder for report.json, table.md, roc.png and training.png"""
    split: str = "test"
    """which shard folder in data"""
    num_jets: int | None = None
    """evaluate on so many jets, a random subset; None for all"""
    classes: tuple[str, ...] = ()
    """use jets of these classes alone, numbered in this order; none named: all"""
    batch_size: int = 1024
    """jets per pass"""
    bootstrap: int = 200
    """resamplings for the uncertainties"""
    seed: int = 0
    """of the resamplings and the subset"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1"""
    threads: int | None = None
    """CPU threads of torch; None for its default"""
    task: str | None = None
    """what to judge them by; by default what the first run was trained for"""
    class_map: tuple[str, ...] = ()
    """which of a model's classes stand for one of the jets', as top=Tbqq+Tbl; by default those of
    the same name"""
    two_sample: int = 0
    """jetnet: updates of a classifier that learns to tell real from generated jets; 0 for none"""
    coverage: int = 0
    """jetnet: jets drawn for coverage and the minimum matching distance; 0 for none"""
    plugin: tuple[str, ...] = ()
    """Python files or modules of yours that register losses, heads or tasks"""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("name at least one run or checkpoint")
        _check_threads(self.threads)
        _check_seed(self.seed)
        for name in ("batch_size", "num_jets"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("two_sample", "coverage"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.bootstrap < 2:
            raise ValueError(f"bootstrap must be at least 2, got {self.bootstrap}")


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings as nested plain values."""
    return {
        f.name: as_dict(v) if dataclasses.is_dataclass(v) else str(v) if isinstance(v, Path) else v
        for f in dataclasses.fields(settings)
        for v in [getattr(settings, f.name)]
    }


def _check_threads(threads: int | None) -> None:
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"threads must lie in 1..{MAX_THREADS}, got {threads}")


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must lie in 0..{MAX_SEED}, got {seed}")
