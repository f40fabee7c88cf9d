"""Boosted trees on a dozen jet variables: what a physicist tries first, on the same jets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jetkern.data import Shards, Stream
from jetkern.evaluation import report_table
from jetkern.io import prepare_folder, write_atomically
from jetkern.jets import Jets
from jetkern.machine import environment
from jetkern.metrics import binary_report
from jetkern.metrics.classification import as_json
from jetkern.metrics.substructure import JET, observables

LEADING = 3  # particles whose share of the jet's pT is a variable
VARIABLES = (*JET, *(f"share of particle {i + 1}" for i in range(LEADING)), "width")
BATCH = 1024
# Rounds end early by the validation jets; the other values are scikit-learn's own but for slower
# learning, which that makes possible.
SETTINGS = {"max_iter": 1000, "learning_rate": 0.05, "n_iter_no_change": 20}


def variables(jets: Jets) -> NDArray[np.float64]:
    """(B, 12) mass, pT, energy, eta, tau21, tau32, D2, multiplicity, the leading particles' shares
    of the sum of pT, and the width sum(pT dR) / sum(pT); NaN for what a jet does not have."""
    found = observables(jets)
    columns = [found[name].values for name in JET]
    eta, phi, log_pt, _ = jets.particles.double().numpy().T
    pt, owner, size = np.exp(log_pt), jets.jet_of_particle.numpy(), len(jets)
    total = np.bincount(owner, pt, minlength=size)
    total = np.where(total > 0, total, np.nan)
    rank = np.arange(len(pt)) - jets.offsets.numpy()[:-1][owner]
    for place in range(LEADING):
        here = rank == place
        columns.append(np.bincount(owner[here], pt[here], minlength=size) / total)
    columns.append(np.bincount(owner, pt * np.hypot(eta, phi), minlength=size) / total)
    return np.stack([np.asarray(c, np.float64) for c in columns], axis=1)


def baseline(
    data: Path,
    out: Path,
    *,
    num_jets: int | None = None,
    test_jets: int | None = None,
    seed: int = 0,
    bootstrap: int = 200,
    threads: int | None = None,
) -> str:
    """Trains on the jets that ``finetune`` would take, stops by those of val, judges by test.

    Args:
        data: folder with the shard folders train, val and test.
        out: folder for report.json and table.md, as ``evaluate`` writes them.
        num_jets, test_jets: random subsets; None for all.
        seed: of subset and trees.
        bootstrap: resamplings for the uncertainties.
        threads: of scikit-learn; None for its default.

    Returns:
        the table.

    Raises:
        ValueError: for jets of other than two classes.
        ModuleNotFoundError: without scikit-learn.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    train = Shards(data / "train")
    train.check_jets("the baseline")
    if len(train.classes) != 2:
        raise ValueError(f"{train.folder} has {len(train.classes)} classes, trees tell 2 apart")
    prepare_folder(out)
    x, y = _read(train, num_jets, seed)
    x_val, y_val = _read(Shards(data / "val"), None, seed)
    test = Shards(data / "test")
    with threadpool_limits(threads):
        trees = HistGradientBoostingClassifier(early_stopping=True, random_state=seed, **SETTINGS)
        trees.fit(x, y, X_val=x_val, y_val=y_val)
        x_test, y_test = _read(test, test_jets, 0)
        odds = trees.decision_function(x_test)
    report = binary_report(odds, y_test, bootstrap=bootstrap)
    record = {
        "data": {"folder": str(test.folder), "fingerprint": test.fingerprint},
        "jets": report.jets,
        "models": {"trees": {"rounds": int(trees.n_iter_), **as_json(report)}},
        "environment": environment(),
    }
    table = report_table({"trees": report})
    write_atomically(out / "report.json", json.dumps(record, indent=2).encode())
    write_atomically(out / "table.md", f"{table}\n".encode())
    return table


def _read(
    shards: Shards, num_jets: int | None, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    stream = Stream(
        shards,
        batch_size=BATCH,
        shuffle=False,
        epochs=1,
        num_jets=num_jets,
        subset_seed=seed,
        fields=(),
        prefetch=0,
    )
    batches = [jets for jets in stream if len(jets)]
    labels = torch.cat([jets.label for jets in batches if jets.label is not None])
    return np.concatenate([variables(jets) for jets in batches]), labels.numpy()
