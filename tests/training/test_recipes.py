"""Losses and tasks from outside the package, classes by name, published checkpoints."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from drivers import ROOT

from jetkern import PET, model_preset
from jetkern.cli import evaluate, finetune, pretrain
from jetkern.data import Shards, Stream
from jetkern.data.shards import manifest_digest
from jetkern.evaluation import joined
from jetkern.model import PETConfig
from jetkern.recipes import evaluate as judge
from jetkern.recipes import pretrain as train_on
from jetkern.tasks import find_task
from jetkern.training.config import EvaluateSettings, RunSettings, ValidationSettings
from jetkern.training.data import check_same, describe
from jetkern.training.defaults import pretrain_defaults
from jetkern.training.log import read_metrics
from jetkern.training.weights import load_weights, model_config
from tests.factories import write_toy_shards

SHORT = ["--batch-size", "32", "--steps", "2", "--warmup-steps", "0", "--val-every", "2"]
SHORT += ["--val-jets", "64", "--log-every", "1"]


def paths(data, out):
    return ["--data", str(data), "--out", str(out)]


@pytest.fixture(scope="module")
def trained(jetclass, tmp_path_factory):
    """A run on QCD, Hbb, Zqq, made without a command line."""
    out = tmp_path_factory.mktemp("trained") / "run"
    settings = pretrain_defaults(preset="micro", objective="classifier")
    optim = replace(settings.optim, batch_size=32, steps=3, warmup_steps=0)
    sections = {
        "optim": optim,
        "validation": ValidationSettings(val_every=3, val_jets=64),
        "run": RunSettings(threads=1),
    }
    result = train_on(replace(settings, data=jetclass, out=out, **sections))
    assert result["reason"] == "all steps done"
    return out


def test_a_loss_from_outside(jetclass, tmp_path):
    out = tmp_path / "run"
    plugin = ["--plugin", str(ROOT / "examples" / "new_loss.py")]
    flags = ["--objective", "classifier+multiplicity", *SHORT, *paths(jetclass, out), *plugin]
    assert pretrain.main(flags) == 0
    records = read_metrics(out / "metrics.jsonl")
    assert all(r["multiplicity"] > 0 and r["classifier_masked"] > 0 for r in records)
    assert load_weights(out).config["parts"] == ["classifier", "multiplicity"]
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["plugin"] == plugin[1:]


def test_a_task_from_outside(jetclass, tmp_path, capsys):
    out = tmp_path / "run"
    plugin = ["--plugin", str(ROOT / "examples" / "new_task.py")]
    more = [*SHORT, "--preset", "micro", *paths(jetclass, out), *plugin]
    assert finetune.main(["tag-Hbb", *more]) == 0
    assert load_weights(out).data["task"] == "tag-Hbb"
    more = ["--split", "val", "--bootstrap", "5", *plugin, *paths(jetclass, tmp_path / "result")]
    assert evaluate.main([str(out), *more]) == 0
    assert finetune.main(["tag-Hbx"]) == 2
    assert "did you mean tag-Hbb?" in capsys.readouterr().err


@pytest.mark.parametrize("plugin", ["absent.py", "absent_module"])
def test_a_plugin_that_is_not_there(plugin, tmp_path, capsys):
    assert pretrain.main([*paths(tmp_path, tmp_path), "--plugin", plugin]) == 2
    assert f"--plugin {plugin}: " in capsys.readouterr().err


def settings(run, data, out, **changes):
    return EvaluateSettings(
        runs=(run,), data=data, out=out, split="val", bootstrap=3, **changes
    )  # fmt: skip


def test_classes_are_found_by_name(trained, jetclass, tmp_path):
    """The same jets under other labels are judged the same; before, they were not."""
    given = judge(settings(trained, jetclass, tmp_path / "a"))["run"]
    swapped = tmp_path / "swapped"
    write_toy_shards(swapped / "val", ["QCD", "Hbb", "Zqq"], jets=256, seed=1)
    manifest = json.loads((swapped / "val" / "manifest.json").read_text())
    assert manifest["classes"] == ["QCD", "Hbb", "Zqq"]
    manifest["classes"] = ["Zqq", "QCD", "Hbb"]
    manifest["sha256"] = manifest_digest(manifest)
    (swapped / "val" / "manifest.json").write_text(json.dumps(manifest))
    mapped = ("Zqq=QCD", "QCD=Hbb", "Hbb=Zqq")  # what those labels were
    same = judge(settings(trained, swapped, tmp_path / "b", class_map=mapped))["run"]
    assert same.accuracy == given.accuracy
    other = judge(settings(trained, swapped, tmp_path / "c"))["run"]
    assert other.accuracy != given.accuracy


def test_classes_that_a_model_does_not_know(trained, toptag, tmp_path):
    with pytest.raises(ValueError, match="tells QCD, Hbb, Zqq apart, none is called top: --class"):
        judge(settings(trained, toptag, tmp_path / "out"))
    wrong = {"tip=Hbb": "say CLASS=NAME", "top=QCD": "cannot stand for two", "top=Hbx": "Hbx"}
    for entry, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            judge(settings(trained, toptag, tmp_path / "out", class_map=(entry,)))
    assert not (tmp_path / "out").exists()


def test_a_sum_of_classes():
    logits = np.log(np.array([[0.5, 0.2, 0.3]], np.float32))
    np.testing.assert_allclose(np.exp(joined(logits, [[0], [1, 2]])), [[0.5, 0.5]], rtol=1e-6)


def test_jets_of_another_scale_are_refused(trained, jetclass):
    shards = Shards(jetclass / "train")
    data = describe(shards)
    check_same(data, shards, ("tracks",), "run")
    data["fields"]["tracks"][0] = "asinh_d0"
    check_same(data, shards, (), "run")
    with pytest.raises(ValueError, match="run was trained on tracks as asinh_d0, "):
        check_same(data, shards, ("tracks",), "run")
    assert load_weights(trained).data == {**describe(shards), "task": None}


def test_published_checkpoints_are_a_source(tmp_path, toptag):
    path = tmp_path / "published.pt"
    with np.load(ROOT / "tests" / "parity" / "classifier_d32.npz", allow_pickle=False) as file:
        names = [name for name in file.files if name.startswith("param/")]
        state = {f"model.{name[6:]}": torch.from_numpy(file[name]).float() for name in names}
    torch.save({"state_dict": state}, path)
    weights = load_weights(path)
    assert model_config(weights).dim == 32
    assert weights.data == {}
    out = tmp_path / "run"
    flags = ["top", "--from", str(path), *SHORT, *paths(toptag, out)]
    assert finetune.main(flags) == 0
    torch.save({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of a known form"):
        load_weights(path)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown part 'mmp'; did you mean mpm"):
        PETConfig(dim=8, layers=1, heads=1, neighbours=2, parts=("mmp",))
    with pytest.raises(ValueError, match="unknown field of a model 'layer'; did you mean layers"):
        model_preset("micro", layer=3)
    with pytest.raises(ValueError, match="did you mean classifier"):
        pretrain_defaults(objective="clasifier")
    with pytest.raises(ValueError, match="unknown task 'tob'; did you mean top"):
        find_task("tob")


def test_the_library_needs_no_command_line_package():
    code = (
        "import sys; sys.modules['jetkern.cli'] = None\n"
        "import jetkern.training.trainer, jetkern.recipes\n"
        "from jetkern.training.defaults import pretrain_defaults\n"
        "assert pretrain_defaults('small', 'mpm').optim.lr == 5e-4"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_is_called_with_jets(jetclass):
    """What hooks and wrappers need: ``forward`` does what the arguments ask for."""
    jets = next(iter(Stream(Shards(jetclass / "val"), batch_size=8, shuffle=False)))
    model = PET(model_preset("micro", num_classes=3)).eval()
    keep, time = torch.arange(len(jets.particles)) % 2 > 0, torch.full((8,), 0.5)
    assert torch.equal(model(jets), model.classify(jets))
    assert torch.equal(model(jets, time), model.velocity(jets, time))
    assert torch.equal(model(jets, keep=keep), model.fill_masked(jets, keep))
    with pytest.raises(ValueError, match="time or keep"):
        model(jets, time, keep)
