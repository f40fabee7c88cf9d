"""The generate command: any interruption and number of processes, the same bytes."""

import errno
import hashlib
import json
import os
import resource
import shutil
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
import torch

from jetkern import PET, model_preset
from jetkern.cli.generate import main
from jetkern.data import Shards, Stream
from jetkern.evaluation import generate as module
from jetkern.evaluation.files import write_jetnet
from jetkern.sampling import PETVelocity
from tests.factories import JETNET, write_jetnet_shards, write_untrained_run
from tests.faults import Faults, Killed, inject

COUNTS = [1, 150, 2, 30, 7, 3, 12, 5, 9, 4]


def checkpoint(folder, parts=("generator",), **more):
    torch.manual_seed(0)
    options = {"num_classes": 5, "use_pid": False, "use_tracks": False, **more}
    return write_untrained_run(folder, PET(model_preset("micro", parts, **options)))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    shards = write_jetnet_shards(folder / "test", COUNTS)
    return checkpoint(folder / "run"), shards


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 3)


def run(inputs, out, *more):
    source, conditions = inputs
    flags = ["--conditions", str(conditions), "--out", str(out), "--solver", "ab2"]
    return main([str(source), *flags, "--evaluations", "2", "--batch-size", "2", *more])


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        if p.is_file()
        else ""
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    module.PART, before = 3, module.PART
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(inputs, out) == 0
    module.PART = before
    return out


def test_the_jets_have_the_conditions_and_counts_asked_for(inputs, whole):
    shards = Shards(whole / "shards")
    made = next(iter(Stream(shards, batch_size=99, shuffle=False, epochs=1)))
    asked = next(iter(Stream(Shards(inputs[1]), batch_size=99, shuffle=False, epochs=1)))
    assert made.counts.tolist() == asked.counts.tolist() == COUNTS
    assert torch.equal(made.label, asked.label)
    assert torch.equal(made.condition, asked.condition)
    assert not (whole / "parts").exists()
    record = json.loads((whole / "generated.json").read_text())
    assert record["jets"] == len(COUNTS)
    assert record["environment"]["torch"] == torch.__version__


def test_jetnets_files_hold_the_same_jets(whole):
    made = next(iter(Stream(Shards(whole / "shards"), batch_size=99, shuffle=False, epochs=1)))
    for number, name in enumerate(JETNET):
        chosen = (made.label == number).nonzero()[:, 0]
        with h5py.File(whole / "jetnet" / f"{name}150.hdf5") as file:
            particles, jets = file["particle_features"][:], file["jet_features"][:]
        assert particles.shape == (len(chosen), 150, 4)
        counts = made.counts[chosen].numpy()
        np.testing.assert_array_equal(jets[:, 3], counts)
        np.testing.assert_array_equal(particles[..., 3].sum(1), counts)
        padded, mask = made.select(chosen).to_padded(150)
        pt = particles[..., 2] * jets[:, :1]
        np.testing.assert_allclose(pt[mask], padded[mask][:, 2].exp(), rtol=1e-4)
        np.testing.assert_array_equal(particles[..., :2][mask], padded[mask][:, :2])


@pytest.mark.parametrize("point", range(10))
def test_killed_anywhere_it_continues_to_the_same_bytes(inputs, whole, tmp_path, point):
    """Killed at the point-th file that is published."""
    out = tmp_path / "out"
    with inject(Faults(out, "replace", point)), pytest.raises(Killed):
        run(inputs, out)
    assert run(inputs, out) == 0
    assert digests(out) == digests(whole)


def test_products_are_rounded_if_asked(inputs, whole, tmp_path):
    assert run(inputs, tmp_path / "out", "--precision", "bf16") == 0
    made, exact = (
        module.first_jets(Shards(folder / "shards")).particles
        for folder in (tmp_path / "out", whole)
    )
    assert 0 < (made - exact).abs().median() < 0.01  # particles of nearly the same pT may swap


def test_folders_without_a_precision_go_on_in_float32(inputs, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    request = json.loads((out / "request.json").read_text())
    assert request.pop("precision") == "ieee"
    (out / "request.json").write_text(json.dumps(request))
    assert run(inputs, out) == 0
    assert run(inputs, out, "--precision", "bf16") == 1


def test_finished_jets_are_not_made_again(inputs, whole, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    monkeypatch.setattr(module, "sample", lambda *a, **k: pytest.fail("made again"))
    assert run(inputs, out) == 0
    assert digests(out) == digests(whole)


def test_a_fitted_scheme_is_kept_with_the_model(inputs, tmp_path, monkeypatch):
    source = tmp_path / "run"
    shutil.copytree(inputs[0], source)
    assert run((source, inputs[1]), tmp_path / "a", "--solver", "fitted") == 0
    stored = json.loads((source / "sampler.json").read_text())
    assert list(stored["schemes"]) == ["2"]
    monkeypatch.setattr(module, "fit", lambda *a: pytest.fail("fitted again"))
    assert run((source, inputs[1]), tmp_path / "b", "--solver", "fitted") == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "1"], "made with another seed"),
        (["--precision", "bf16"], "made with another precision"),
        (["--evaluations", "3"], "made with another scheme"),
        (["--num-jets", "11"], "has 10 jets, 11 are asked for"),
        (["--solver", "rk4", "--evaluations", "6"], "no multiple"),
    ],
)
def test_requests_that_do_not_fit(inputs, whole, tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    assert run(inputs, out, *flags) == 1
    assert message in capsys.readouterr().err
    assert digests(out) == digests(whole)


def test_a_checkpoint_without_a_generator(inputs, tmp_path, capsys):
    source = checkpoint(tmp_path / "run", ("classifier",))
    assert run((source, inputs[1]), tmp_path / "out") == 1
    assert "no generator, only classifier" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [3, 0, 5]}, "jet 1 with a count out of 1 to 150"),
        ({"counts": [3, 2], "types": [0, 7], "classes": tuple("abcdefgh")}, "type 7 is unknown"),
        ({"counts": [3, 2], "masses": [1.0, np.nan]}, "jet 1 with a condition that is not finite"),
    ],
)
def test_conditions_that_cannot_be_made(inputs, tmp_path, capsys, change, message):
    shards = write_jetnet_shards(tmp_path / "test", **change)
    assert run((inputs[0], shards), tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1 or "sampling" in error


def test_a_network_that_breaks_leaves_nothing_half_written(inputs, tmp_path, capsys, monkeypatch):
    def breaks(self, jets, times):
        return lambda x, k: torch.full_like(x, torch.nan if (jets.index == 4).any() else 0.0)

    with monkeypatch.context() as patch:
        patch.setattr(PETVelocity, "prepare", breaks)
        assert run(inputs, tmp_path / "out") == 1
    assert "not finite at evaluation 1 of 2 (t = 1): jets 3, 4" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out" / "parts").iterdir()) == ["part-000000.npy"]


@contextmanager
def files_of_at_most(size):
    """Writing more fails in the kernel, also for libraries that write without Python."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_that_names_the_file(inputs, whole, tmp_path, capsys):
    out = tmp_path / "out"
    with files_of_at_most(2000):
        assert run(inputs, out) == 1
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert f"{out}/parts/part-000000.npy: {os.strerror(errno.EFBIG)}" in error
    assert not list(out.rglob(".*"))
    assert run(inputs, out) == 0
    assert digests(out) == digests(whole)


def test_a_full_disk_while_hdf5_is_written(inputs, tmp_path):
    jets = next(iter(Stream(Shards(inputs[1]), batch_size=99, shuffle=False, epochs=1)))
    with files_of_at_most(4000), pytest.raises(OSError, match=r"g150\.hdf5"):
        write_jetnet(tmp_path / "jetnet", jets, JETNET)
    assert not list((tmp_path / "jetnet").iterdir())
    write_jetnet(tmp_path / "jetnet", jets, JETNET)
    assert len(list((tmp_path / "jetnet").iterdir())) == 5
