import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jetkern.interop import omnilearned

PARITY = Path(__file__).parents[1] / "parity"


@pytest.fixture(scope="module")
def published():
    """A reference model's weights under their published names."""
    with np.load(PARITY / "pretrain_d16.npz", allow_pickle=False) as file:
        config = json.loads(str(file["config"]))
        names = [n for n in file.files if n.startswith("param/")]
        return config, {n.removeprefix("param/"): torch.from_numpy(file[n]) for n in names}


def same_weights(model, published):
    state = model.state_dict()
    converted = omnilearned.convert(published)
    assert state.keys() >= converted.keys()
    for name, value in converted.items():
        torch.testing.assert_close(state[name], value.float())


def test_the_studys_lightning_checkpoint(tmp_path, published):
    config, weights = published
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": {f"model.{k}": v for k, v in weights.items()}}, path)
    model = omnilearned.load(path, heads=config["num_heads"], neighbours=config["K"])
    assert model.config.parts == ("classifier", "generator", "mpm")
    assert (model.config.dim, model.config.layers) == (16, 2)
    same_weights(model, weights)


def test_omnilearned_checkpoint(tmp_path, published):
    config, weights = published

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

    path = tmp_path / "best_model_pretrain_s.pt"
    torch.save(
        {
            "body": part("body."),
            "classifier_head": part("classifier."),
            "generator_head": part("generator."),
            "epoch": 12,
            "loss": 1.0,
        },
        path,
    )
    model = omnilearned.load(path, heads=config["num_heads"], neighbours=config["K"])
    assert model.config.parts == ("classifier", "generator")
    same_weights(
        model, {k: v for k, v in weights.items() if not k.startswith(("mpm_head", "mask_"))}
    )


def test_bare_state_dict(tmp_path, published):
    config, weights = published
    path = tmp_path / "weights.pt"
    torch.save(weights, path)
    same_weights(omnilearned.load(path, heads=config["num_heads"], neighbours=config["K"]), weights)


class Payload:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_refuses_what_it_cannot_read_safely(tmp_path, published, capsys):
    _, weights = published
    path = tmp_path / "bad.pt"

    def refused(match):
        with pytest.raises(ValueError, match=match) as raised:
            omnilearned.load(path, heads=2, neighbours=4)
        assert str(path) in str(raised.value)

    torch.save({"state_dict": weights, "hyper_parameters": Payload()}, path)
    refused("cannot|can be read safely")
    assert "code from a checkpoint ran" not in capsys.readouterr().out

    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:2000])
    refused("can be read safely")

    torch.save({"epoch": 3}, path)
    refused("no state_dict and no body")

    torch.save({k: v for k, v in weights.items() if k != "body.norm.alpha"}, path)
    refused("body.norm.alpha")
