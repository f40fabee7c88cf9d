"""A model of the conditions: type -> jet pT, mass, ..., multiplicity, so that no jets are needed.

A small perceptron learns the flow (arXiv 2210.02747) from normal numbers to the conditions of a
type. What it learns are dependences only: every column of every type is first made normal by its
own quantiles, so that narrow peaks and integers come out as they are in the training jets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from jetkern.data import Shards, Stream
from jetkern.io import explain, locked, remove_leftovers
from jetkern.jets import Jets, offsets_from_counts
from jetkern.model.layers import MLP, TimeFourier, initialise
from jetkern.random import normal, random_bits, uniform
from jetkern.sampling import integrate, with_evaluations
from jetkern.sampling.sampler import MAX_PARTICLES
from jetkern.training.checkpoints import RunError, digest_of, read_checkpoint, write_checkpoint

FOLDER = "conditions"  # in the run
COUNT = "multiplicity/100"
WIDTH, BLOCKS = 64, 3
STEPS, BATCH, RATE = 2000, 1024, 3e-3  # of Adam; the rate falls as a cosine
SCHEME = with_evaluations("midpoint", 64)
PICK, NOISE, TIME, SPREAD, START = range(41, 46)  # streams of random numbers
HEIGHTS = np.linspace(-4.5, 4.5, 241)  # of the normal, where quantiles are kept


class ConditionModel(nn.Module):
    """Velocity of conditions in normal units, given the type.

    Args:
        quantiles: (types, len(HEIGHTS), C) float64, rising along the second dimension; NaN for
            types without jets. The last column is the multiplicity.
    """

    quantiles: Tensor

    def __init__(self, quantiles: Tensor) -> None:
        super().__init__()
        types, _, columns = quantiles.shape
        self.register_buffer("quantiles", quantiles.double())
        self.embed = nn.Linear(columns, WIDTH)
        self.type_embed = nn.Embedding(types, WIDTH)
        self.time_fourier = TimeFourier(WIDTH)
        self.time_embed = MLP(WIDTH, 2 * WIDTH, WIDTH, bias=False)
        self.blocks = nn.ModuleList(MLP(WIDTH, 2 * WIDTH, WIDTH) for _ in range(BLOCKS))
        self.out = nn.Linear(WIDTH, columns)
        initialise(self)

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """(B, C) velocity, noise minus data, at ``time`` (B,), 1 for noise."""
        h = self.embed(x) + self.type_embed(label) + self.time_embed(self.time_fourier(time))
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


def fit_conditions(
    values: Tensor, label: Tensor, types: int, *, steps: int = STEPS, seed: int = 0
) -> ConditionModel:
    """Learns the conditions of jets.

    Args:
        values: (B, C), the last column the multiplicities.
        label: (B,) types, 0 to ``types`` - 1.
        steps: updates.
        seed: of the weights, and of all that is random. The same arguments give the same weights.

    Raises:
        ValueError: for no jets, or values that are not finite.
    """
    from scipy.special import ndtr

    if not len(values) or not values.isfinite().all():
        raise ValueError("conditions to learn from must be finite numbers of at least one jet")
    row = torch.arange(len(values))
    spread = values.double()  # between integers, so that multiplicities have quantiles
    spread[:, -1] += uniform(seed, SPREAD, row) - 0.5
    table = np.full((types, len(HEIGHTS), values.shape[1]), np.nan)
    kind, array = label.numpy(), spread.numpy()
    for number in np.unique(kind):
        table[number] = np.quantile(array[kind == number], ndtr(HEIGHTS), axis=0)
    data = torch.from_numpy(_mapped(array, kind, table, inverse=False)).float()
    torch.manual_seed(seed)
    model = ConditionModel(torch.from_numpy(table))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    row = torch.arange(BATCH)[:, None]
    column = torch.arange(values.shape[1])
    for step in tqdm(torch.arange(steps), desc="conditions", unit=" updates", mininterval=1):
        chosen = random_bits(seed, PICK, step, row[:, 0]) % len(data)
        time = uniform(seed, TIME, step, row)
        noise = normal(seed, NOISE, step, row, column)
        x, kinds = data[chosen], label[chosen]
        velocity = model((1 - time) * x + time * noise, time[:, 0], kinds)
        loss = (velocity - (noise - x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def draw_conditions(model: ConditionModel, label: Tensor, *, seed: int = 0) -> Tensor:
    """(B, C) float64 conditions of jets of these types, the last column integers from 1.

    A function of (seed, number of the jet, its type).

    Raises:
        ValueError: naming a type that the model has not seen jets of.
    """
    known = ~model.quantiles[:, 0, 0].isnan()
    for number in label.unique().tolist():
        if not 0 <= number < len(known) or not known[number]:
            raise ValueError(f"type {number} is unknown: there were no jets of it to learn from")
    times = torch.tensor(SCHEME.times, dtype=torch.float32)
    start = normal(
        seed, START, torch.arange(len(label))[:, None], torch.arange(model.quantiles.shape[2])
    )
    end = integrate(lambda x, k: model(x, times[k].expand(len(x)), label), start, SCHEME)
    table = model.quantiles.numpy()
    values = _mapped(end.double().numpy(), label.numpy(), table, inverse=True)
    values[:, -1] = values[:, -1].round().clip(1, MAX_PARTICLES)
    return torch.from_numpy(values)


def learn_conditions(
    run: Path, train: Shards, *, num_jets: int | None = None, steps: int = STEPS, seed: int = 0
) -> None:
    """Keeps a model of the conditions of a run's training jets in the run, if there is none yet.

    Args:
        run: the folder.
        train: the jets, with conditions and labels.
        num_jets, seed: the subset of them that the run was trained on.
        steps: updates, at most ``STEPS``.
    """
    folder = run / FOLDER
    if folder.exists():
        return
    with locked(run):
        remove_leftovers(run)
        values, label = [], []
        stream = Stream(
            train,
            batch_size=10_000,
            shuffle=False,
            epochs=1,
            fields=(),
            num_jets=num_jets,
            subset_seed=seed,
        )
        for jets in stream:
            if len(jets):
                values.append(_with_count(jets, train.condition))
                assert jets.label is not None
                label.append(jets.label)
        kinds = torch.cat(label)
        steps = min(steps, STEPS)
        model = fit_conditions(torch.cat(values), kinds, len(train.classes), steps=steps, seed=seed)
        state = {
            "model": model.state_dict(),
            "classes": list(train.classes),
            "condition": list(train.condition),
        }
        counts = kinds.bincount(minlength=len(train.classes)).tolist()
        facts = {"jets": dict(zip(train.classes, counts, strict=True))}
        write_checkpoint(folder, steps, state, facts)


def load_conditions(run: Path) -> tuple[ConditionModel, tuple[str, ...], tuple[str, ...], str]:
    """The model of the conditions that a run keeps.

    Returns:
        the model, the names of its types, those of the conditions, and its digest.

    Raises:
        RunError: if the run has none, or it is damaged.
    """
    folder = run / FOLDER
    if not folder.is_dir():
        raise RunError(f"{run} has no model of the conditions: finetune jetnet makes one")
    state = read_checkpoint(folder)
    try:
        quantiles = state["model"]["quantiles"]
        classes, names = tuple(state["classes"]), tuple(state["condition"])
        if quantiles.shape[:2] != (len(classes), len(HEIGHTS)):
            raise ValueError("its quantiles are not of its types")
        model = ConditionModel(quantiles)
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise RunError(f"{folder} holds no model of conditions: {explain(error)}") from error
    return model.eval(), classes, names, digest_of(folder)


def outside(run: Path, jets: Jets, names: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """How many jets are wanted with conditions that no training jet of their type had.

    Args:
        run: the folder, with a model of the conditions or without.
        jets: with conditions and, where types have names, labels.
        names: of the conditions; classes: of the types.

    Returns:
        by name of the condition, or "multiplicity", the jets that are beyond the range of what the
        run was trained on by more than a hundredth of it; by name of the type, those of a type that
        it does not know. Nothing for a run without a model, and for other conditions than its.
    """
    if not (run / FOLDER).is_dir() or jets.condition is None or jets.label is None:
        return {}
    model, known, columns, _ = load_conditions(run)
    if tuple(names) != columns:
        return {}
    limits = model.quantiles[:, [0, -1]].numpy()  # (types, 2, C)
    values, label = _with_count(jets, names).numpy(), jets.label.numpy()
    order = [*(name for name in columns if name != COUNT), "multiplicity"]
    found: dict[str, int] = {}
    for number in np.unique(label):
        chosen, name = values[label == number], str(classes[number])
        low, high = limits[known.index(name)] if name in known else (np.nan, np.nan)
        if np.isnan(low).any():
            found[name] = len(chosen)
            continue
        slack = 0.01 * (high - low) + 1e-6 * np.abs(high)  # the ends are quantiles, not extremes
        slack[-1] += 0.5  # multiplicities were spread by so much
        wrong = ((chosen < low - slack) | (chosen > high + slack)).sum(0)
        for column, count in zip(order, wrong.tolist(), strict=True):
            if count:
                found[column] = found.get(column, 0) + count
    return found


def jets_to_make(
    model: ConditionModel, names: Sequence[str], numbers: Sequence[int], *, seed: int = 0
) -> Jets:
    """Jets with types, conditions and counts, whose particles are still zero.

    Args:
        model: of ``load_conditions``.
        names: of the conditions.
        numbers: jets of each type.
        seed: of the draws.
    """
    each = torch.tensor(numbers)
    label = torch.arange(len(each)).repeat_interleave(each)
    values = draw_conditions(model, label, seed=seed)
    counts = values[:, -1].long()
    columns = list(values[:, :-1].unbind(1))
    if COUNT in names:
        columns.insert(list(names).index(COUNT), values[:, -1] / 100)
    offsets = offsets_from_counts(counts)
    return Jets(
        particles=torch.zeros(int(offsets[-1]), 4),
        offsets=offsets,
        label=label,
        condition=torch.stack(columns, 1).float(),
        index=torch.arange(len(label)),
    )


def _with_count(jets: Jets, names: Sequence[str]) -> Tensor:
    """(B, C) conditions without that of the multiplicity, then the number of particles."""
    assert jets.condition is not None
    kept = [i for i, name in enumerate(names) if name != COUNT]
    return torch.cat([jets.condition[:, kept].double(), jets.counts[:, None].double()], 1)


def _mapped(
    values: NDArray[np.float64],
    label: NDArray[np.int64],
    table: NDArray[np.float64],
    *,
    inverse: bool,
) -> NDArray[np.float64]:
    """Values to normal ones by the quantiles of their type, or back."""
    result = np.empty_like(values)
    for number in np.unique(label):
        chosen = label == number
        for column in range(values.shape[1]):
            pair = table[number, :, column], HEIGHTS
            known, wanted = pair[::-1] if inverse else pair
            result[chosen, column] = np.interp(values[chosen, column], known, wanted)
    return result
