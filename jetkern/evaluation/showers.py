"""Showers from a decoder of hits, given the energies of their particles."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jetkern.clouds import Clouds
from jetkern.convert.readers.showers import CLASSES, SIZES, read_energies
from jetkern.data import Shards
from jetkern.data.blocks import BlockReader
from jetkern.evaluation.files import Made, write_sets
from jetkern.model.layers import set_precision
from jetkern.model.shower_decoder import ShowerDecoder
from jetkern.packed import offsets_from_counts
from jetkern.random import uniform
from jetkern.sampling import SLOTS, generate
from jetkern.showers import COLUMNS, CONDITION, Showers
from jetkern.simulate.showers import write_showerdata
from jetkern.training.distributed import World
from jetkern.training.weights import Weights, load_model

if TYPE_CHECKING:
    from jetkern.evaluation.generate import GenerateSettings

PART = 200  # showers, which take longer than jets
PER_FILE = 2000
SPARE = 1.25  # hits that a shower may have, over the most in the shards that were learned
ENERGY = 51  # stream of random numbers
UNKNOWN = 0  # PDG code: shards do not know the particles


class ShowerMaker:
    """A decoder of showers, and the energies that they are asked for with; see
    ``jetkern.evaluation.generate.Maker``.

    Raises:
        ValueError: for settings without energies, or with energies that are none.
    """

    def __init__(self, settings: GenerateSettings, weights: Weights, world: World) -> None:
        model = load_model(weights)
        assert isinstance(model, ShowerDecoder)
        set_precision(model, settings.precision)
        self.model = model.to(world.device).eval()
        self.energies = asked_energies(settings)
        self.jets, self.seed = len(self.energies), settings.seed
        self.drawing = settings.drawing
        self.most = settings.max_particles or int(SPARE * model.config.longest) + 1
        self.slots = settings.slots or SLOTS
        tokenizer = model.tokenizer
        self.identity: dict[str, Any] = {
            "weights": weights.sha256,
            **({} if tokenizer is None else {"tokenizer": tokenizer.fingerprint}),
            "energies": hashlib.sha256(self.energies.tobytes()).hexdigest(),
            "jets": self.jets,
            **self.drawing.as_json(),
            "max_particles": self.most,
            "seed": settings.seed,
            "precision": settings.precision,
        }

    @property
    def part(self) -> int:
        return PART

    def make(self, numbers: range, progress: bool) -> Made:
        some = torch.from_numpy(self.energies[numbers.start : numbers.stop])
        drawn = generate(
            self.model.body,
            torch.arange(numbers.start, numbers.stop),
            seed=self.seed,
            max_points=self.most,
            slots=self.slots,
            drawing=self.drawing,
            condition=self.model.condition(some),
            progress=progress,
        )
        counts, cut = drawn.packed.counts.cpu(), drawn.cut.cpu()
        return Made(self.model.hits(drawn.points, drawn.packed).cpu(), counts, cut)

    def write(self, out: Path, rows: Tensor, counts: Tensor) -> None:
        source = {"generated": self.identity}
        showers = Clouds(
            points=rows,
            offsets=offsets_from_counts(counts),
            label=torch.zeros_like(counts),
            condition=torch.from_numpy(self.energies)[:, None],
        )
        write_sets(
            out / "shards", showers, CLASSES, CONDITION, source, points=COLUMNS, per_block=SIZES[0]
        )
        (out / "showers").mkdir(exist_ok=True)
        every = Showers.of_clouds(showers)
        for number, first in enumerate(range(0, len(every), PER_FILE)):
            ids = range(first, min(first + PER_FILE, len(every)))
            path = out / "showers" / f"showers_{number:04d}.h5"
            write_showerdata(path, [every.part(ids.start, ids.stop)], ids, UNKNOWN, source)

    def record(self, counts: Tensor, cut: Tensor) -> dict[str, Any]:
        low, high = self.model.config.energies
        outside = (self.energies < np.float32(low)) | (self.energies > np.float32(high))
        return {
            "cut": int(cut.sum()),
            "empty": int((counts == 0).sum()),
            "outside": int(outside.sum()),
        }


def asked_energies(settings: GenerateSettings) -> NDArray[np.float32]:
    """(N,) energies in GeV of the particles whose showers are asked for.

    Raises:
        ValueError: for none, or more than there are.
    """
    if (settings.conditions is None) == (settings.energies is None):
        raise ValueError(
            "a decoder of showers needs --conditions, a folder of shards, or --energies, a file of "
            "showers or LOW,HIGH"
        )
    if settings.conditions is not None:
        where, found = settings.conditions, _of_shards(settings.conditions)
    else:
        assert settings.energies is not None
        where = Path(settings.energies)
        limits = settings.energies.split(",")
        if len(limits) == 2 and not where.exists():
            return _spread(limits, settings)
        found = read_energies(where)
        if not (np.isfinite(found) & (found > 0)).all():
            raise ValueError(f"{where}: an energy of a particle is not above 0")
    number = len(found) if settings.num_jets is None else settings.num_jets
    if not 1 <= number <= len(found):
        raise ValueError(f"{where} has {len(found)} showers, {number} are asked for")
    return found[:number]


def _of_shards(folder: Path) -> NDArray[np.float32]:
    shards = Shards(folder)
    if shards.points != COLUMNS or shards.condition != CONDITION:
        raise ValueError(f"{folder} has no showers whose energies could be taken")
    reader = BlockReader(shards)
    try:
        parts = [reader.array(block, "condition")[:, 0] for block in range(len(shards.index))]
    finally:
        reader.close()
    return np.concatenate(parts)


def _spread(limits: list[str], settings: GenerateSettings) -> NDArray[np.float32]:
    try:
        low, high = map(float, limits)
    except ValueError:
        low = high = -1.0
    if not 0 < low <= high < np.inf:
        raise ValueError(f"--energies {settings.energies} is neither a file nor LOW,HIGH in GeV")
    if settings.num_jets is None:
        raise ValueError("--energies LOW,HIGH needs --num-jets, how many showers")
    drawn = uniform(settings.seed, ENERGY, torch.arange(settings.num_jets)).double().numpy()
    return (low + (high - low) * drawn).astype(np.float32)
