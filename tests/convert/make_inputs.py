"""Files of every input format, made with the library that made the originals."""

import h5py
import numpy as np

from jetkern.convert.readers import JETCLASS


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
        data[..., (-3, -1)] = np.abs(data[..., (-3, -1)])  # errors
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


def four_vectors(jets, *, slots=200, seed=0):
    """Padded (N, P) E, px, py, pz in GeV of massless particles, highest pT first, and counts."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, slots // 2, jets, endpoint=True)
    mask = np.arange(slots) < counts[:, None]
    pt = -np.sort(-np.where(mask, rng.exponential(15, mask.shape) + 0.5, 0), axis=1)
    eta = rng.normal(0, 1, (jets, 1)) + rng.normal(0, 0.2, mask.shape)
    phi = rng.uniform(-np.pi, np.pi, (jets, 1)) + rng.normal(0, 0.2, mask.shape)
    vectors = [pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)]
    return [v.astype("f4") for v in vectors], counts


def top_frame(jets, *, slots=200, seed=0):
    """The published top-tagging columns as a pandas table."""
    import pandas

    rng = np.random.default_rng(seed)
    vectors, counts = four_vectors(jets, slots=slots, seed=seed)
    columns = [f"{part}_{i}" for i in range(slots) for part in ("E", "PX", "PY", "PZ")]
    values = np.stack(vectors, axis=2).reshape(jets, -1)
    truth = rng.normal(0, 300, (jets, 4)).astype("f4")
    frame = pandas.DataFrame(
        np.concatenate([values, truth], axis=1),
        columns=[*columns, "truthE", "truthPX", "truthPY", "truthPZ"],
    )
    flags = pandas.DataFrame(
        {"ttv": rng.integers(0, 3, jets), "is_signal_new": rng.integers(0, 2, jets)}
    )
    return pandas.concat([frame, flags], axis=1), vectors, counts


def top_tagging(path, jets=300, *, layout="table", seed=0, slots=200):
    """A file as published: pandas, blosc-compressed."""
    frame, vectors, counts = top_frame(jets, slots=slots, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_hdf(path, key="table", mode="w", format=layout, complib="blosc", complevel=5)
    return frame, vectors, counts


def jetnet(path, jets=300, *, slots=150, seed=0):
    """A file of JetNet's layout; the name of the path says the type."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, slots, jets, endpoint=True)
    mask = np.arange(slots) < counts[:, None]
    pt = -np.sort(-np.where(mask, rng.exponential(0.02, mask.shape) + 1e-4, 0), axis=1)
    eta, phi = rng.normal(0, 0.2, (2, *mask.shape))
    features = (np.stack([eta, phi, pt, mask], axis=2) * mask[..., None]).astype("f4")
    quantities = [rng.normal(1000, 50, jets), rng.normal(0, 1, jets), rng.normal(90, 9, jets)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["particle_features"] = features
        file["jet_features"] = np.stack([*quantities, counts], axis=1).astype("f4")
    return features, np.stack([*quantities, counts], axis=1).astype("f4")


def jetclass(path, jets=300, *, seed=0, change=None):
    """A ROOT file with JetClass's tree; ``change(branches)`` may alter it before it is written."""
    import awkward
    import uproot

    rng = np.random.default_rng(seed)
    (energy, px, py, pz), counts = four_vectors(jets, slots=120, seed=seed)
    mask = np.arange(120) < counts[:, None]
    total = int(counts.sum())
    kind = rng.integers(0, 5, total)
    flat = {
        "part_px": px[mask],
        "part_py": py[mask],
        "part_pz": pz[mask],
        "part_energy": energy[mask],
        "part_deta": rng.normal(size=total).astype("f4"),
        "part_dphi": rng.normal(size=total).astype("f4"),
        "part_d0val": rng.normal(size=total).astype("f4"),
        "part_d0err": rng.uniform(0, 1, total).astype("f4"),
        "part_dzval": rng.normal(size=total).astype("f4"),
        "part_dzerr": rng.uniform(0, 1, total).astype("f4"),
        "part_charge": np.where(np.isin(kind, (0, 3, 4)), rng.choice([-1, 1], total), 0).astype(
            "f4"
        ),
    }
    names = ("isChargedHadron", "isNeutralHadron", "isPhoton", "isElectron", "isMuon")
    flat |= {f"part_{name}": (kind == i).astype("f4") for i, name in enumerate(names)}
    jagged = {name: awkward.unflatten(values, counts) for name, values in flat.items()}
    x, y, z, e = (v.astype("f8").sum(axis=1) for v in (px, py, pz, energy))
    pt = np.hypot(x, y)
    per_jet = {
        "jet_pt": pt,
        "jet_eta": np.arcsinh(z / pt),
        "jet_phi": np.arctan2(y, x),
        "jet_energy": e,
        "jet_nparticles": counts,
        "jet_sdmass": np.full(jets, 80.0),
    }
    label = rng.integers(0, 10, jets)
    branches = (
        jagged
        | {k: v.astype("f4") for k, v in per_jet.items()}
        | {f"label_{name}": (label == i).astype("f4") for i, name in enumerate(JETCLASS)}
    )
    if change is not None:
        change(branches)
    path.parent.mkdir(parents=True, exist_ok=True)
    with uproot.recreate(path) as file:
        file.mktree("tree", branches)  # by assignment, uproot 5.7 writes an RNTuple
    return flat, counts, label, per_jet
