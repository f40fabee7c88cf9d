"""Reading in parts gives the same values in little memory; the tool starts and ends quietly."""

import os
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_inputs import omnilearned

from jetkern.cli import convert
from jetkern.convert import clean, scatter
from jetkern.convert.readers import Options, Raw, hdf5
from jetkern.convert.readers import omnilearned as reader

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "storage",
    [
        {},
        {"chunks": (7, 5, 9), "compression": "gzip"},
        {"chunks": (100, 20, 3)},
        {"dtype": ">f8"},
    ],
)
def test_parts_are_the_rows_of_the_dataset(tmp_path, monkeypatch, storage):
    values = np.random.default_rng(0).normal(size=(150, 20, 9)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", data=values, **storage)
        for part_bytes in (1, 20_000, 1 << 30):
            monkeypatch.setattr(hdf5, "_PART_BYTES", part_bytes)
            for start, stop in ((0, 150), (3, 4), (13, 149), (99, 101)):
                parts = [p.copy() for p in hdf5.parts(data, start, stop)]
                assert np.array_equal(np.concatenate(parts), values[start:stop])
                assert all(p.dtype.isnative for p in parts)
                rows = data.chunks[0] if data.chunks else 1
                ends = start + np.cumsum([len(p) for p in parts[:-1]], dtype=int)
                assert not (ends % rows).any()


def test_parts_share_their_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "_PART_BYTES", 4000)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("data", data=np.ones((300, 10, 4), "f4"))
        addresses = {p.__array_interface__["data"][0] for p in hdf5.parts(data, 0, 300)}
    assert len(addresses) == 1


@settings(max_examples=50, deadline=None)
@given(
    features=st.sampled_from([4, 5, 8, 9]),
    explicit=st.booleans(),
    awkward=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_real_particles_are_found(tmp_path_factory, features, explicit, awkward, seed):
    """Also such with ln E = 0, and between padding rows."""
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(30, 12, features)).astype("f4")
    if features in (5, 9):
        data[..., 4] = rng.integers(1, 9, data.shape[:2])
    if explicit:
        counts = rng.integers(0, 12, 30, endpoint=True)
        mask = np.arange(12) < counts[:, None]
    else:
        mask = rng.random((30, 12)) < 0.5
    data[~mask] = 0
    if awkward:
        data[rng.random(mask.shape) < 0.1, 3] = 0
        data[rng.random(mask.shape) < 0.1, 3] = -0.0
    path = tmp_path_factory.mktemp("real") / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"], file["pid"] = data, np.zeros(30, int)
        if explicit:
            file["num_particles"] = counts
    source = reader.open_source(path, Options(classes=("a",)))
    raw = source.read(4, 29)
    source.close()
    mask = mask[4:29] if explicit else (data[4:29] != 0).any(axis=2)
    rows = data[4:29][mask]
    assert np.array_equal(raw.counts, mask.sum(axis=1))
    assert np.array_equal(raw.particles, rows[:, :4])
    if features in (5, 9):
        assert np.array_equal(raw.pid, rows[:, 4])
    if features in (8, 9):
        assert np.array_equal(raw.tracks, rows[:, -4:])


@pytest.mark.parametrize("rows", [1, 255, 256, 257, 5000])
def test_limits_of_columns(rows):
    values = np.random.default_rng(rows).normal(size=(rows, 4)).astype("f4")
    expected = np.array([values.min(axis=0), values.max(axis=0)])
    assert np.array_equal(clean.extremes(values), expected)
    for at in {0, rows // 2, rows - 1}:
        for bad in (np.nan, np.inf):
            damaged = values.copy()
            damaged[at, 2] = bad
            assert np.isfinite(clean.extremes(damaged)).all(axis=0).tolist() == [
                True, True, False, True
            ]  # fmt: skip
    assert not clean.extremes(values[:0]).any()


def test_only_jets_out_of_order_are_sorted():
    counts = np.array([0, 2, 0, 3, 1, 2, 0])
    pt = np.array([1, 0, 5, 4, 3, 9, 1, 2], "f4")  # rising at every jet's start but the last's
    particles = np.zeros((8, 4), "f4")
    particles[:, 2] = particles[:, 3] = pt
    raw = Raw(counts=counts, particles=particles, label=np.zeros(7, int))
    tally = {}
    result = clean._sort(raw, tally)
    assert tally == {"jets sorted by pT": 1}
    assert result.particles[:, 2].tolist() == [1, 0, 5, 4, 3, 9, 2, 1]


def test_the_converter_needs_no_torch():
    code = (
        "import sys; sys.path[:0] = ['.']\n"
        "import jetkern.cli.convert, jetkern.convert.run, jetkern.convert.report\n"
        "import jetkern.convert.readers.omnilearned\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_converter_is_quiet_when_nobody_reads_its_report(tmp_path):
    omnilearned(tmp_path / "a.h5", 40)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "data_tools/convert.py", tmp_path / "a.h5", "--out", tmp_path / "o"]
    done = subprocess.run(
        [*map(str, command), "--quiet"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "o" / "manifest.json").exists()


def test_an_input_stays_open_between_ranges_and_no_longer(tmp_path, monkeypatch):
    omnilearned(tmp_path / "a.h5", 60, seed=1)
    omnilearned(tmp_path / "b.h5", 60, seed=2)
    opened = []
    monkeypatch.setattr(
        reader, "open_source", lambda *a: opened.append(reader.OmniLearned(*a)) or opened[-1]
    )
    command = [str(tmp_path / n) for n in ("a.h5", "b.h5")] + ["--out", str(tmp_path / "out")]
    assert convert.main([*command, "--quiet", "--jets-per-read", "10"]) == 0
    assert len(opened) == 4  # each once to plan and once to read
    assert not scatter._opened
    assert not any(source.file for source in opened)


def ranges(n, rng):
    edges = np.unique(rng.integers(0, n, 12, endpoint=True))
    yield from pairwise(edges)  # in order, with a first gap
    for _ in range(6):
        start = rng.integers(0, n)
        yield start, rng.integers(start, n) + 1


def test_parquet_ranges_in_any_order(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as file_format

    from jetkern.convert.readers import parquet

    rng = np.random.default_rng(0)
    lists = [rng.normal(size=n).tolist() for n in rng.integers(0, 5, 500)]
    numbers = np.arange(500)
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"number": numbers, "list": lists})
    file_format.write_table(table, path, row_group_size=130)
    for batch in (7, 64, 1000):
        monkeypatch.setattr(parquet, "_BATCH", batch)
        file = parquet.Parquet(path, ["number", "list"])
        for start, stop in ranges(500, rng):
            values, counts = file.read(["number", "list"], start, stop)
            assert np.array_equal(values["number"], numbers[start:stop])
            assert counts["list"].tolist() == [len(v) for v in lists[start:stop]]
            assert values["list"].tolist() == list(chain(*lists[start:stop]))
        assert np.array_equal(file.read(["number"], 40, 300)[0]["number"], numbers[40:300])
        file.close()


def test_parquet_in_order_is_decoded_once_and_in_little_memory(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as file_format

    path = tmp_path / "a.parquet"
    columns = {f"c{i}": np.random.default_rng(i).normal(size=200_000) for i in range(10)}
    table = pyarrow.table(columns)
    file_format.write_table(
        table, path, row_group_size=200_000, data_page_size=1 << 16, use_dictionary=False
    )
    code = (
        "import sys; sys.path[:0] = ['.']\n"
        "from pathlib import Path\n"
        "import pyarrow\n"
        "from jetkern.convert.readers.parquet import Parquet\n"
        "file = Parquet(Path(sys.argv[1]))\n"
        "made = []\n"
        "batches = type(file._file).iter_batches\n"
        "type(file._file).iter_batches = lambda *a, **k: made.append(0) or batches(*a, **k)\n"
        "for start in range(0, 200_000, 10_000):\n"
        "    file.read(file.columns, start, start + 10_000)\n"
        "print(len(made), pyarrow.default_memory_pool().max_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, check=True, capture_output=True
    )
    streams, most = map(int, done.stdout.split())
    assert streams == 1
    assert most < table.nbytes / 3
