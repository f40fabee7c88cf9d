"""Checkpoints that somebody forged, checksum and all, and damaged logs: one line, no memory."""

import copy
import hashlib
import json
import random
import shutil
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from drivers import PRETRAIN, flags

from jetkern.cli import evaluate, finetune, pretrain
from jetkern.training.checkpoints import RunError, read_tensors

SMALL = {"objective": "classifier", "steps": 2, "val_every": 2, "batch_size": 8, "save_every": 1}
WRONG = [None, -1, 10**9, 2**70, 0.5, "\x1b[2J", [], [1, "a"], {}, {"a": [1]}, torch.ones(2), ...]


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.delenv("JETKERN_DEBUG", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def arguments(data, out, **more):
    return flags(PRETRAIN, data=data, out=out, warmup_steps=0, **SMALL | more)


@pytest.fixture(scope="module")
def trained(jetclass, tmp_path_factory):
    """A run with two steps of four done."""
    out = tmp_path_factory.mktemp("trained") / "run"
    threads = torch.get_num_threads()
    assert pretrain.main(arguments(jetclass, out)) == 0
    torch.set_num_threads(threads)
    (out / "DONE").unlink()
    return out


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def paths_of(value, path=(), depth=4):
    yield path
    if isinstance(value, (dict, list)) and depth:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_of(inner, (*path, key), depth - 1)


def forge(state, path, value):
    """The state with another value there, or without it."""
    forged = copy.deepcopy(state)
    *outer, last = path
    place = forged
    for key in outer:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return forged


def put(folder, state):
    """Writes a state with a manifest that vouches for it."""
    torch.save(state, folder / "state.pt")
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["sha256"]["state.pt"] = hashlib.sha256((folder / "state.pt").read_bytes()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def check(code, capfd, case):
    said = capfd.readouterr()
    assert "Traceback" not in said.err, (case, said.err)
    assert "\x1b" not in said.out + said.err, case
    if code:
        assert "error: " in said.err.splitlines()[-1], case
    return code


def test_every_kind_of_value_in_every_place_of_a_checkpoint(run, jetclass, tmp_path, capfd):
    folders = sorted((run / "checkpoints").iterdir())
    state = torch.load(folders[0] / "state.pt", weights_only=True)
    step = torch.load(folders[-1] / "state.pt", weights_only=True)
    places = [p for p in paths_of(step) if p]
    few = {p[:2] if p[0] in ("model", "optimizer") and len(p) > 2 else p: p for p in places}
    drawn = random.Random(0)
    refused = 0
    judge = [str(run), "--data", str(jetclass), "--out", str(tmp_path / "o"), "--split", "val"]
    judge += ["--num-jets", "16", "--bootstrap", "2", "--threads", "1"]
    for case in drawn.sample([(p, v) for p in few.values() for v in WRONG], 12):
        path, value = case
        for folder in folders:
            own = state if folder == folders[0] else step
            put(folder, forge(own, path, value) if path in paths_of(own) else own)
        for old in (run / "DONE",):
            old.unlink(missing_ok=True)
        refused += check(pretrain.main(arguments(jetclass, run)), capfd, case)
        check(evaluate.main(judge), capfd, case)
    assert refused > 2


@pytest.mark.slow
def test_every_kind_of_value_in_every_place_of_a_manifest(run, toptag, tmp_path, capfd):
    (best,) = (run / "checkpoints").glob("best-*")
    manifest = json.loads((best / "MANIFEST.json").read_text())
    values = [v for v in WRONG if not isinstance(v, torch.Tensor)]
    cases = [(p, v) for p in paths_of(manifest, depth=3) if p for v in values]
    for number, case in enumerate(random.Random(1).sample(cases, 12)):
        (best / "MANIFEST.json").write_text(json.dumps(forge(manifest, *case)))
        more = {k: v for k, v in SMALL.items() if k != "objective"} | {"objective": None}
        command = flags(PRETRAIN, data=toptag, out=tmp_path / str(number), **more, warmup_steps=0)
        check(finetune.main(["top", "--from", str(best), *command, "--steps=1"]), capfd, case)


def test_tensors_larger_than_their_file_and_compressed_files(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(1).expand(10**12)}, path)
    with pytest.raises(RunError, match=r"a\.pt: w claims to be larger than the file"):
        read_tensors(path)
    torch.save({"w": torch.zeros(10**5)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {m.filename: archive.read(m) for m in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(RunError, match="compressed"):
        read_tensors(path)
    loop = OrderedDict()
    loop["self"] = [loop]
    torch.save(loop, path)
    assert read_tensors(path)["self"][0]["self"]


def test_a_damaged_log_stops_nothing(run, jetclass, tmp_path, capfd):
    log = run / "metrics.jsonl"
    content = bytearray(log.read_bytes())
    content[5] = 0xFF
    log.write_bytes(content)
    judge = [str(run), "--data", str(jetclass), "--out", str(tmp_path / "o"), "--split", "val"]
    assert evaluate.main([*judge, "--num-jets", "16", "--bootstrap", "2", "--threads", "1"]) == 0
    assert capfd.readouterr().err.count("1 damaged lines are left out, first 1") == 1
    assert pretrain.main(arguments(jetclass, run)) == 0
    said = capfd.readouterr()
    assert (said.out + said.err).count("1 damaged lines are left out, first 1") == 1


def test_a_run_killed_while_its_first_file_was_written_goes_on(jetclass, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / ".lock").touch()
    (out / ".config.json.123.part").write_text("{")
    assert pretrain.main(arguments(jetclass, out)) == 0
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("name", ["threads", "seed"])
@pytest.mark.parametrize("value", ["1000000000000000000000000", "-1"])
def test_numbers_that_no_machine_has(jetclass, tmp_path, capfd, name, value):
    command = [*arguments(jetclass, tmp_path / "run"), f"--{name}={value}"]
    try:
        code = pretrain.main(command)
    except SystemExit as end:
        code = end.code
    assert code in (1, 2)
    assert name in capfd.readouterr().err
    assert sys.exc_info() == (None, None, None)
    assert not (tmp_path / "run").exists()
