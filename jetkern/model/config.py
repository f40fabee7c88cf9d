"""What a model is made of."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("classifier", "generator", "mpm")


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
    parts: tuple[str, ...] = ("classifier",)
    """task heads: any of classifier, generator, mpm; a generator adds the time embedding"""
    use_pid: bool = True
    """embed the particle identity"""
    use_tracks: bool = True
    """embed the impact parameters"""
    feature_drop: float = 0.1
    """probability that a training jet's identity (or track) embedding is dropped, per jet"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(p for p in PARTS if p in self.parts))
        if not self.parts:
            raise ValueError(f"a model needs at least one part of {', '.join(PARTS)}")
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.dim}")
