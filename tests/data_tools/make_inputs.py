"""Files of every input format, made with the library that made the originals."""

import h5py
import numpy as np
from readers import JETCLASS


def random_jets(jets, *, seed=0, slots=150, features=9, low=1, high=90):
    """Padded (N, P, F) particles in OmniLearned's layout and their counts (N,)."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(low, min(high, slots), jets, endpoint=True)
    mask = np.arange(slots) < counts[:, None]
    pt = np.where(mask, rng.normal(1, 1.3, mask.shape), -99).astype("f4")
    data = np.zeros((*mask.shape, features), "f4")
    data[..., :2] = rng.normal(0, 0.2, (*mask.shape, 2))
    data[..., 2] = -np.sort(-pt, axis=1)
    data[..., 3] = data[..., 2] + np.abs(rng.normal(0.3, 0.1, mask.shape))
    if features in (5, 9):
        data[..., 4] = rng.integers(1, 9, mask.shape)
    if features in (8, 9):
        data[..., -4:] = np.tanh(rng.normal(size=(*mask.shape, 4)))
    data[~mask] = 0
    return data, counts


def omnilearned(
    path, jets=300, label=0, *, seed=0, shift=2, classes=JETCLASS, explicit=True, **more
):
    """A file of OmniLearned's layout, by default as data_tools/simulate.py writes it."""
    data, counts = random_jets(jets, seed=seed, **more)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed + 1)
    condition = rng.normal(500, 50, (jets, 5)).astype("f4")
    condition[:, -1] = counts / 100
    with h5py.File(path, "w") as file:
        file["data"] = data
        file["pid"] = np.full(jets, label + shift, np.int64)
        file["global"] = condition
        if explicit:
            file["num_particles"] = counts.astype("i4")
            file.attrs["label_shift"] = shift
            file.attrs["classes"] = list(classes)
            file["global"].attrs["columns"] = [
                "jet_pt", "jet_eta", "jet_phi", "jet_mass", "multiplicity/100"
            ]  # fmt: skip
    return data, counts, condition
