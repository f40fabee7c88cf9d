"""The Point-Edge Transformer of arXiv 2606.14870 (section II, appendix A) on packed jets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jetkern import ops
from jetkern.jets import IDENTITIES, Jets, evenly, join_segments
from jetkern.model.config import HEADS, PETConfig
from jetkern.model.heads import AttentionProbe, Classifier, Generator, Probe
from jetkern.model.layers import (
    MLP,
    AttentionBlock,
    DynamicTanh,
    Layer,
    LocalBlock,
    TimeFourier,
    initialise,
    set_precision,
)
from jetkern.model.masked import MaskedModel
from jetkern.packed import constant


class Columns(nn.Module):
    """Embeds the columns that a generator makes, in units of their noise."""

    mean: Tensor
    width: Tensor

    def __init__(self, config: PETConfig) -> None:
        super().__init__()
        assert config.noise_mean is not None
        assert config.noise_width is not None
        for name, values in (("mean", config.noise_mean), ("width", config.noise_width)):
            self.register_buffer(name, torch.tensor(values[4:]), persistent=False)
        hidden = config.expansion * config.dim
        self.mlp = MLP(len(config.columns), hidden, config.dim, bias=False)

    def forward(self, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """(T, C) columns to (T, D)."""
        return self.mlp(((columns - self.mean) / self.width).to(dtype))


class Body(Layer):
    """Embeds particles, mixes them with their neighbours, and runs the biased transformer."""

    def __init__(self, config: PETConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.heads
        hidden = config.expansion * dim
        self.config = config
        self.tokens = nn.Parameter(torch.empty(config.global_tokens, dim))
        self.embed_norm = DynamicTanh(4)
        self.embed = MLP(4, hidden, dim)
        self.local = LocalBlock(dim, heads, config.head_layers, config.expansion)
        self.pair_bias = MLP(3, hidden, heads, norm=False)
        self.pid_embed = nn.Embedding(IDENTITIES, dim, padding_idx=0) if config.use_pid else None
        self.track_embed = MLP(4, hidden, dim, bias=False) if config.use_tracks else None
        self.condition_embed = MLP(config.condition_dim, dim, dim) if config.condition_dim else None
        timed = "generator" in config.parts
        self.time_fourier = TimeFourier(dim) if timed else None
        self.time_embed = MLP(dim, hidden, dim, bias=False) if timed else None
        stepping = timed and bool(config.few_steps)
        self.step_embed = MLP(dim, hidden, dim, bias=False) if stepping else None
        self.column_embed = Columns(config) if config.columns else None
        self.blocks = nn.ModuleList(
            AttentionBlock(dim, heads, config.expansion) for _ in range(config.layers)
        )
        self.norm = DynamicTanh(dim)

    def embed_particles(
        self, jets: Jets, keep_pid: Tensor | None, keep_tracks: Tensor | None
    ) -> Tensor:
        """(T, D): kinematics, neighbourhood, identity and tracks of each particle.

        Particles keep their own precision up to here: a model in half precision still finds
        neighbours and angles in that of the jets.
        """
        dtype = self.tokens.dtype
        neighbours = ops.knn(jets.particles, jets.packed, self.config.neighbours)
        x = self.embed(self.embed_norm(jets.particles).to(dtype))
        x = x + self.local(jets.particles, neighbours).to(dtype)
        for name, embed, keep in (
            ("pid", self.pid_embed, keep_pid),
            ("tracks", self.track_embed, keep_tracks),
        ):
            if embed is None:
                continue
            values = getattr(jets, name)
            if values is None:
                raise ValueError(f"this model embeds {name}, but the jets have none")
            extra = embed(values.to(dtype) if values.is_floating_point() else values)
            if keep is None:
                x = x + extra
            else:
                x = torch.addcmul(x, extra, keep[jets.jet_of_particle][:, None])
        if self.column_embed is None:
            return x
        if jets.columns is None:
            raise ValueError(f"this model makes {', '.join(self.config.columns)}: jets have none")
        return x + self.column_embed(jets.columns, dtype)

    def forward(
        self,
        jets: Jets,
        time: Tensor | None = None,
        keep_pid: Tensor | None = None,
        keep_tracks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Rows of each jet: global tokens, time token, condition token, particles.

        Args:
            jets: the batch.
            time: (M,) flow-matching time of the first M jets, or (M, 2) with the end of a step.
                The others are clean and have no time token (the reference code masks it out at
                t = 0).
            keep_pid, keep_tracks: (B,) float, 0 where the feature dropout drops a jet's embedding.

        Returns:
            rows (T + tokens, D) and their offsets (B + 1,).
        """
        x = self.embed_particles(jets, keep_pid, keep_tracks)
        embedded = None if time is None else self.embed_time(time)
        x, offsets = join_segments([*self.token_rows(jets, embedded), (x, jets.offsets)])
        return self.mix(x, offsets, jets), offsets

    def embed_time(self, time: Tensor) -> Tensor:
        """(M,) times, or (M, 2) begins and ends of steps, to their (M, D) tokens.

        A step of no length adds nothing: ``time_fourier`` of 0 is 0, and the perceptrons have no
        bias.
        """
        if self.time_embed is None or self.time_fourier is None:
            raise ValueError("time given to a model without a generator")
        begin = time if time.dim() == 1 else time[:, 0]
        token = self.time_embed(self.time_fourier(begin).to(self.tokens.dtype))
        if time.dim() == 1:
            return token
        if self.step_embed is None:
            raise ValueError("the end of a step given to a model that was not distilled")
        step = self.time_fourier(begin - time[:, 1])
        return token + self.step_embed(step.to(self.tokens.dtype))

    def token_rows(self, jets: Jets, time: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Rows and offsets of what stands before a jet's particles.

        Args:
            jets: the batch.
            time: (M, D) time tokens of the first M jets, or None.
        """
        jet = evenly(jets.offsets)
        tokens = self.tokens.repeat(jets.offsets.shape[0] - 1, 1)
        sources = [(tokens, evenly(jets.offsets, self.config.global_tokens))]
        if time is not None:
            sources.append((time, jet.clamp(max=time.shape[0])))
        if self.condition_embed is not None:
            if jets.condition is None:
                raise ValueError("this model is conditional, but the jets have no condition")
            condition = jets.condition
            if self.config.condition_scale is not None:
                scale = self.config.condition_scale
                condition = condition / constant(scale, condition.dtype, condition.device)
            sources.append((self.condition_embed(condition.to(self.tokens.dtype)), jet))
        return sources

    def mix(self, x: Tensor, offsets: Tensor, jets: Jets) -> Tensor:
        """The transformer on rows (T + tokens, D) of ``jets``, biased by their particle pairs."""
        precision = self.pair_bias.precision
        biases = ops.shared_pair_bias(
            jets.particles,
            jets.packed,
            self.pair_bias.weights,
            len(self.blocks),
            dtype=torch.bfloat16 if precision == "bf16" and x.is_cuda else None,
            precision=precision,
        )
        for block, bias in zip(self.blocks, biases, strict=True):
            x = block(x, offsets, bias, jets.packed)
        return self.norm(x)


class PET(nn.Module):
    """Body and task heads. Each task is a method; training losses are in ``objectives``.

    Args:
        precision: what the products may be rounded to, see ``jetkern.model.layers.set_precision``.
    """

    classifier: Classifier | Probe | AttentionProbe | None
    generator: Generator | None
    mpm: MaskedModel | None

    def __init__(self, config: PETConfig, *, precision: str = "ieee") -> None:
        super().__init__()
        self.config = config
        self.body = Body(config)
        self.classifier, self.generator, self.mpm = None, None, None
        for part in config.parts:
            setattr(self, part, HEADS[part](config))
        initialise(self)
        nn.init.trunc_normal_(self.body.tokens, std=0.02, a=-2, b=2)
        if self.body.step_embed is not None:  # to begin with, the velocity where the step begins
            nn.init.zeros_(self.body.step_embed.fc2.weight)
        for part in config.parts:
            own = getattr(getattr(self, part), "initialise", None)
            if own is not None:
                own()
        set_precision(self, precision)

    def forward(self, jets: Jets, time: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """``classify``, with a time ``velocity``, with keep ``fill_masked``.

        Args:
            jets: B jets, T particles.
            time: (B,) of the flow-matching path, 1 for noise, 0 for data.
            keep: (T,) bool, true for the particles that are shown.

        Returns:
            (B, num_classes) logits, or (T, 4) velocities or predictions.

        Raises:
            ValueError: for both, or what the model has no part for.
        """
        if time is not None and keep is not None:
            raise ValueError("give time or keep, not both")
        if time is not None:
            return self.velocity(jets, time)
        return self.classify(jets) if keep is None else self.fill_masked(jets, keep)

    def classify(self, jets: Jets) -> Tensor:
        """(B, num_classes) logits.

        Raises:
            ValueError: if the model has no classifier.
        """
        if self.classifier is None:
            raise ValueError("this model has no classifier")
        return self.classifier(*self.body(jets))

    def velocity(self, jets: Jets, time: Tensor) -> Tensor:
        """(T, 4) flow-matching velocity (noise minus data) of noised jets; (T, 4 + C) of a model
        that makes further columns.

        Args:
            jets: particles and columns at ``time`` on the path, with ``label`` if there are several
                types.
            time: (B,), 1 for noise, 0 for data; (B, 2) for the mean velocity of steps from the
                first time to the second, of a distilled model.

        Raises:
            ValueError: if the model has no generator, or was not distilled.
        """
        if self.generator is None:
            raise ValueError("this model has no generator")
        x, offsets = self.body(jets, time)
        return self.generator(x, offsets, jets)

    def fill_masked(self, jets: Jets, keep: Tensor) -> Tensor:
        """(T, 4) prediction of all particles from some of them.

        Args:
            jets: all particles; keep: (T,) bool, true for those that the model sees.

        Raises:
            ValueError: if the model has no masked-particle head, or one that does not predict the
                four numbers.
        """
        if self.mpm is None:
            raise ValueError("this model has no masked-particle head")
        x, offsets = self.body(jets.keep_particles(keep))
        return self.mpm(x, offsets, jets, keep)
