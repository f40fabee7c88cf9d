"""What a model is made of."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

    Head = TypeVar("Head", bound=Callable[["PETConfig"], nn.Module])

PARTS = ("classifier", "generator", "mpm")  # those of the study
PROBES = ("token", "mean", "attention")
TARGETS = ("regression", "identity", "tokens", "cfm", "cnf", "ssfm")  # of hidden particles
HEADS: dict[str, Callable[[PETConfig], nn.Module]] = {}


def register_head(name: str) -> Callable[[Head], Head]:
    """Makes a task head known as a part of models; used as a decorator on its class.

    Args:
        name: of the part, and of the model's attribute.

    Raises:
        ValueError: if another head has the name.
    """

    def register(head: Head) -> Head:
        if HEADS.get(name, head) is not head:
            raise ValueError(f"there is a part {name!r} already")
        HEADS[name] = head
        return head

    return register


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is none of ``known``, with the one that may have been meant."""
    near = difflib.get_close_matches(name, known := list(known), n=1)
    hint = f"; did you mean {near[0]}?" if near else f": there are {', '.join(known)}"
    return ValueError(f"unknown {what} {name!r}{hint}")


def check_conditions(config: Any) -> None:
    """Makes the scales of a generator's conditions floats.

    Raises:
        ValueError: if they are not one above 0 for each, or a probability is none.
    """
    if config.condition_scale is not None:
        scale = tuple(map(float, config.condition_scale))
        object.__setattr__(config, "condition_scale", scale)
        if len(scale) != config.condition_dim or not all(0 < s < float("inf") for s in scale):
            raise ValueError(
                f"condition_scale {scale} must be {config.condition_dim} numbers above 0"
            )
    if not 0 <= config.label_drop < 1 or (config.label_drop and config.num_classes < 2):
        raise ValueError(
            f"label_drop must lie in [0, 1), and be 0 for one type; got {config.label_drop} for "
            f"{config.num_classes}"
        )


def fields_of(columns: tuple[str, ...]) -> tuple[str, ...]:
    """The optional fields of jets that these columns of a generator are."""
    found = (("pid", "charge"), ("tracks", "d0_error"))
    return tuple(field for field, column in found if column in columns)


def check_columns(config: Any) -> None:
    """Makes columns names and their noise floats.

    Raises:
        ValueError: unless mean and width of the noise are given for each of kinematics and columns.
    """
    object.__setattr__(config, "columns", tuple(config.columns))
    number = 4 + len(config.columns)
    for name in ("noise_mean", "noise_width"):
        given = getattr(config, name)
        if given is None:
            if config.columns or config.noise_mean is not None or config.noise_width is not None:
                raise ValueError(f"{name} of the {number} columns is not given")
            continue
        values = tuple(map(float, given))
        object.__setattr__(config, name, values)
        lowest = 0 if name == "noise_width" else -float("inf")
        if len(values) != number or not all(lowest < v < float("inf") for v in values):
            raise ValueError(
                f"{name} must be {number} finite numbers, widths above 0; got {values}"
            )


def noise_of(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and width of a generator's noise; None for the study's, of kinematics alone."""
    return None if config.noise_mean is None else (config.noise_mean, config.noise_width)


@dataclass(frozen=True, kw_only=True)
class PETConfig:
    """What a model is made of. ``jetkern.model.presets`` has the four sizes of the study."""

    dim: int
    """width D"""
    layers: int
    """transformer blocks of the body"""
    heads: int
    """attention heads, in the body, the local block and the task heads"""
    neighbours: int
    """K of the local block"""
    head_layers: int = 2
    """blocks in the local block and in each task head"""
    expansion: int = 2
    """hidden width of the perceptrons over D"""
    global_tokens: int = 4
    """learned tokens in front of each jet"""
    num_classes: int = 10
    """outputs of the classifier, and jet types of the generator"""
    condition_dim: int = 0
    """jet-level quantities that condition the model; 0 for none"""
    condition_scale: tuple[float, ...] | None = None
    """what the conditions are divided by, one number each; None for 1"""
    parts: tuple[str, ...] = ("classifier",)
    """task heads: of classifier, generator, mpm and registered ones; a generator adds the time
    embedding"""
    use_pid: bool = True
    """embed the particle identity"""
    use_tracks: bool = True
    """embed the impact parameters"""
    feature_drop: float = 0.1
    """probability that a training jet's identity (or track) embedding is dropped, per jet"""
    label_drop: float = 0.0
    """probability that the generator is not told a training jet's type; above 0 it also knows jets
    without a type (label -1), for classifier-free guidance"""
    probe: str | None = None
    """the classifier is one linear layer on what the body says: "token" for its global tokens side
    by side, "mean" for the mean of its other rows; or "attention" for what a learned query finds in
    all of them; None for the whole head"""
    few_steps: tuple[int, ...] = ()
    """numbers of steps that a distilled generator takes: it predicts the mean velocity between two
    times; () for one that predicts the velocity at one"""
    targets: tuple[str, ...] = ()
    """what the masked-particle head says of hidden particles: of regression, identity, tokens, cfm,
    cnf and ssfm; () for the study's, the four numbers as they are stored"""
    target_features: tuple[str, ...] = ()
    """features of a particle on the normal scale of a tokeniser, which is kept with the model; ()
    for the four numbers as they are stored"""
    codes: int = 0
    """of the tokeniser"""
    vqvae: tuple[int, ...] = ()
    """width, blocks, heads and length of a latent of a tokeniser that is a VQ-VAE; () for others"""
    shared_mask: bool = False
    """hidden particles enter the decoder as one vector, not as that of their rank in pT among the
    hidden"""
    decoder_dim: int | None = None
    """width of the decoder of hidden particles; None for D"""
    decoder_layers: int | None = None
    """its blocks; None for head_layers"""
    decoder_heads: int | None = None
    """its attention heads; None for those of the body"""
    columns: tuple[str, ...] = ()
    """what the generator makes beside kinematics, see ``jetkern.model.columns``"""
    noise_mean: tuple[float, ...] | None = None
    """mean of the noise of kinematics and columns; None for the study's, of kinematics alone"""
    noise_width: tuple[float, ...] | None = None
    """its width; the loss is in its units"""

    @property
    def fields(self) -> tuple[str, ...]:
        """The optional fields of jets that the model embeds."""
        used = (("pid", self.use_pid), ("tracks", self.use_tracks))
        return tuple(name for name, is_used in used if is_used) + fields_of(self.columns)

    @property
    def decoder_shape(self) -> tuple[int, int]:
        """Attention heads and blocks of the decoder of hidden particles."""
        layers = self.head_layers if self.decoder_layers is None else self.decoder_layers
        return self.decoder_heads or self.heads, layers

    def _check_generator(self) -> None:
        check_conditions(self)
        check_columns(self)
        if self.columns and self.parts != ("generator",):
            raise ValueError(
                "columns are what a generator makes: a model of them has no other part"
            )
        if self.columns and (self.use_pid or self.use_tracks or self.few_steps):
            raise ValueError(
                "a model that makes columns embeds no identities or tracks as they are and is not "
                "distilled"
            )

    def _check_targets(self) -> None:
        for target in self.targets:
            if target not in TARGETS:
                raise unknown("target", target, TARGETS)
        targets = tuple(t for t in TARGETS if t in self.targets)
        if targets == ("regression",) and not self.target_features:
            targets = ()
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "target_features", tuple(self.target_features))
        object.__setattr__(self, "vqvae", tuple(self.vqvae))
        scaled = [t for t in targets if t in ("tokens", "cfm", "cnf", "ssfm")]
        if scaled and not self.target_features:
            raise ValueError(
                f"the target {scaled[0]} needs particles on a normal scale: give the tokeniser "
                "that jetkern tokenize has fitted"
            )
        if "tokens" in targets and not self.codes:
            raise ValueError(
                "the target tokens needs a tokeniser with codes, this has a scale only"
            )
        if self.decoder_layers is not None and self.decoder_layers < 0:
            raise ValueError(f"decoder_layers must not be negative, got {self.decoder_layers}")
        width, heads = self.decoder_dim or self.dim, self.decoder_shape[0]
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the decoder's width {width}")

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in HEADS:
                raise unknown("part", part, HEADS)
        object.__setattr__(self, "parts", tuple(p for p in HEADS if p in self.parts))
        if not self.parts:
            raise ValueError(f"a model needs at least one part of {', '.join(HEADS)}")
        self._check_generator()
        if self.probe is not None and self.probe not in PROBES:
            raise unknown("probe", self.probe, PROBES)
        object.__setattr__(self, "few_steps", tuple(map(int, self.few_steps)))
        if any(steps < 1 for steps in self.few_steps):
            raise ValueError(f"few_steps {self.few_steps} must be at least 1")
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.dim}")
        self._check_targets()
