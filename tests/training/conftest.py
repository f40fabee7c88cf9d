import pytest
import torch

from jetkern.cli import tokenize
from tests.factories import write_toy_shards


@pytest.fixture(scope="session")
def jetclass(tmp_path_factory):
    """train and val with three classes, identities and tracks."""
    folder = tmp_path_factory.mktemp("jetclass")
    for seed, split in enumerate(("train", "val")):
        write_toy_shards(folder / split, ["QCD", "Hbb", "Zqq"], jets=256, seed=seed)
    return folder


@pytest.fixture(scope="session")
def toptag(tmp_path_factory):
    """train, val and test with two classes and kinematics only."""
    folder = tmp_path_factory.mktemp("toptag")
    for seed, split in enumerate(("train", "val", "test")):
        write_toy_shards(folder / split, ["QCD", "top"], jets=512, seed=seed, extras=False)
    return folder


@pytest.fixture(scope="session")
def tokens(jetclass, tmp_path_factory):
    """A tokeniser of eight codes."""
    out = tmp_path_factory.mktemp("tokens") / "tokens"
    threads = torch.get_num_threads()
    flags = f"kmeans --data {jetclass} --out {out} --codes 8 --steps 5 --threads 1"
    assert tokenize.main(flags.split()) == 0
    torch.set_num_threads(threads)
    return out
