import pytest

from jetkern.data import Shards
from tests.factories import write_shards


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """30 blocks of 20 to 60 jets with 0 to 30 particles, in three shards."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def shards(folder):
    return Shards(folder)
