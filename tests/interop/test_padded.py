"""Classifiers on padded jets, and the files that other programs run."""

import json
import subprocess
import sys

import pytest
import torch

from jetkern import PET, model_preset
from jetkern.interop.padded import PaddedClassifier, drawn, padded_inputs, write

SMALL = {"dim": 8, "layers": 1, "heads": 2, "neighbours": 4, "num_classes": 3}


def build(**changes):
    torch.manual_seed(0)
    return PET(model_preset("micro", ("classifier",), **{**SMALL, **changes})).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"probe": "mean", "use_pid": False, "condition_dim": 2, "condition_scale": (2.0, 3.0)},
        {"probe": "token", "use_tracks": False},
        {"probe": "attention", "condition_dim": 1},
    ],
    ids=lambda changes: changes.get("probe", "whole head"),
)
@torch.no_grad()
def test_padded_jets_get_the_model_s_logits(changes):
    model = build(**changes).double()
    jets = drawn(model, (0, 1, 4, 5, 9))
    jets = jets.replace(
        particles=jets.particles.double(),
        tracks=None if jets.tracks is None else jets.tracks.double(),
        condition=None if jets.condition is None else jets.condition.double(),
    )
    plain = PaddedClassifier(model)
    particles, mask, *fields = padded_inputs(jets, plain.inputs)
    particles[~mask] = torch.nan  # nobody looks there
    torch.testing.assert_close(plain(particles, mask, *fields), model.classify(jets))
    order = torch.randperm(mask.shape[1])
    shuffled = [f if f.shape[1] != mask.shape[1] else f[:, order] for f in fields]
    again = plain(particles[:, order], mask[:, order], *shuffled)
    torch.testing.assert_close(again, model.classify(jets))


def test_a_program_runs_without_this_package(tmp_path):
    model, path = build(), tmp_path / "a.pt2"
    assert write(model, path, {"classes": ["a", "b", "c"]}) < 1e-5
    jets = drawn(model, (6, 2))
    inputs = padded_inputs(jets, PaddedClassifier(model).inputs)
    torch.save(list(inputs), tmp_path / "inputs.pt")
    script = (
        "import sys, torch; extra = {'jetkern.json': ''};"
        "program = torch.export.load('a.pt2', extra_files=extra);"
        "out = program.module()(*torch.load('inputs.pt', weights_only=True));"
        "torch.save(out, 'out.pt'); print(extra['jetkern.json']);"
        "assert not any(m.startswith('jetkern') for m in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["inputs"] == ["particles", "mask", "pid", "tracks"]
    with torch.no_grad():
        out = torch.load(tmp_path / "out.pt", weights_only=True)
        torch.testing.assert_close(out, model.classify(jets), rtol=1e-4, atol=1e-5)


def test_onnx_runs_in_onnxruntime(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra export")
    import onnxruntime

    model, path = build(use_pid=False, condition_dim=2), tmp_path / "a.onnx"
    assert write(model, path, {"classes": ["a", "b", "c"]}) < 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["inputs"]) == ["particles", "mask", "tracks", "condition"]
    jets = drawn(model, (6, 2, 0))
    names = [given.name for given in session.get_inputs()]
    values = [value.numpy() for value in padded_inputs(jets, names)]
    (out,) = session.run(None, dict(zip(names, values, strict=True)))
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(out), model.classify(jets), rtol=1e-4, atol=1e-5
        )


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"a.pt: the ending must be one of .onnx, .pt2"):
        write(build(), tmp_path / "a.pt", {})
    torch.manual_seed(0)
    model = PET(model_preset("micro", ("mpm",), **SMALL))
    with pytest.raises(ValueError, match="has no classifier"):
        write(model, tmp_path / "a.pt2", {})
    assert not list(tmp_path.iterdir())
