"""Writes jets in a made-up format, which examples/your_format.toml describes, and converts them.

python examples/your_format.py FOLDER
"""

import sys
from pathlib import Path

import h5py
import numpy as np

from jetkern.cli.convert import main as convert

SCHEMA = Path(__file__).with_suffix(".toml")


def write(path: Path, jets: int = 200) -> None:
    """``jets`` jets of 1 to 30 particles: pT (MeV), eta, phi, highest pT first, and PDG codes."""
    random = np.random.default_rng(0)
    count = random.integers(1, 31, jets)
    real = np.arange(30) < count[:, None]
    pt = -np.sort(-np.where(real, random.exponential(20_000, real.shape) + 500, 0), axis=1)
    eta, phi = (centre + random.normal(0, 0.15, real.shape) for centre in (0.4, -1.0))
    with h5py.File(path, "w") as file:
        file["constituents"] = np.stack([pt, eta, phi], axis=2) * real[..., None]
        file["pdg_id"] = random.choice([211, -211, 22, 130], real.shape) * real
        file["n_constituents"] = count
        file["is_gluon"] = random.integers(0, 2, jets)


def main(folder: Path) -> int:
    """Writes FOLDER/jets.h5 and FOLDER/shards; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "jets.h5")
    splits = "train=0.8,val=0.1,test=0.1"
    out = ["--out", str(folder / "shards"), "--splits", splits, "--quiet"]
    return convert([str(folder / "jets.h5"), "--schema", str(SCHEMA), *out])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "your_format")))
