"""weaver's outputs and gradients, given by examples/particle_transformer.py with weaver's weights.

particle_transformer.npz holds those of weaver-core 0.5.3 in float64, for small random models of
each version (weights are float16 numbers) on jets of 5, 1, 9 and 2 particles around phi = 3.
"""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jetkern import pack
from jetkern.packed import Packed

ROOT = Path(__file__).parents[2]
EXAMPLE = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "particle_transformer.py")))
PAIR_BIASES = ("pair_embed.embed.7.bias", "pair_embed.embed.8.bias")  # of the last layer and norm
VERSIONS = (1, 2, 3, 3.5, 3.6)


def load(version: float) -> tuple[Any, dict[str, Tensor], dict[str, list[int]]]:
    """The model with weaver's weights, and what weaver made of the jets."""
    with np.load(Path(__file__).with_name("particle_transformer.npz"), allow_pickle=False) as file:
        data = {
            k.removeprefix(f"{version}/"): file[k]
            for k in file.files
            if "/" not in k or k.startswith(f"{version}/")
        }
    shapes = json.loads(str(data.pop("names")))
    names = json.loads(str(data.pop("parameters")))
    found = {k: torch.from_numpy(v) for k, v in data.items()}
    parts = found["weights"].double().split([int(np.prod(s)) for s in shapes.values()])
    state = {k: p.view(s) for (k, s), p in zip(shapes.items(), parts, strict=True)}
    sizes = {"embed": (6, 10, 8), "pair": (6, 7), "heads": 2, "layers": 2, "class_layers": 1}
    model = EXAMPLE.ParticleTransformer(5, 3, version=version, **sizes).double()
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict(state | counters)
    assert [n for n, _ in model.named_parameters()] == names
    return model.eval(), found, shapes


@pytest.mark.parametrize("version", VERSIONS)
def test_outputs_and_gradients_are_those_of_weaver(version: float) -> None:
    model, data, shapes = load(version)
    x, offsets = pack(data["x"], data["mask"])
    v, _ = pack(data["v"], data["mask"])
    out = model(x.requires_grad_(), v, Packed(offsets))
    torch.testing.assert_close(out, data["out"], rtol=1e-12, atol=1e-12)
    weights = dict(model.named_parameters())
    d_x, *gradients = torch.autograd.grad(out, [x, *weights.values()], data["upstream"])
    expected, _ = pack(data["gradient of x"], data["mask"])
    torch.testing.assert_close(d_x, expected, rtol=1e-11, atol=1e-12)
    sizes = [int(np.prod(shapes[name])) for name in weights]
    for name, have, want in zip(weights, gradients, data["gradients"].split(sizes), strict=True):
        scale = want.abs().max()
        # A shift of all of a query's scores changes nothing.
        assert scale > 1e-6 or name in PAIR_BIASES
        worst = (have.flatten() - want).abs().max()
        assert worst < 1e-11 * scale + 1e-13, (name, worst)


@pytest.mark.parametrize("version", VERSIONS)
def test_in_float32_the_compiled_ops_err_as_little_as_their_reference(
    version: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, _ = load(version)
    x, offsets = pack(data["x"].float(), data["mask"])
    v, _ = pack(data["v"].float(), data["mask"])
    want = model(x.double(), v.double(), Packed(offsets))
    errors = []
    for backend in ("auto", "reference"):
        monkeypatch.setenv("JETKERN_BACKEND", "" if backend == "auto" else backend)
        errors.append((model.float()(x, v, Packed(offsets)) - want).abs().max())
    assert errors[0] <= 2 * errors[1] + 1e-6 * want.abs().max()


def test_training_takes_the_statistics_of_the_pairs_and_changes_them() -> None:
    model, data, _ = load(1)
    x, offsets = pack(data["x"], data["mask"])
    v, _ = pack(data["v"], data["mask"])
    norm = model.pair_embed["embed"][0]
    before = norm.running_mean.clone()
    model.train()(x, v, Packed(offsets)).sum().backward()
    features = EXAMPLE.pair_features(v, *EXAMPLE.ops.unordered_pairs(offsets))
    assert len(features) == 15 + 1 + 45 + 3
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * features.mean(0))
    assert all(p.grad is not None for p in model.parameters())


def test_features_do_not_cancel_where_weaver_s_formula_does() -> None:
    """Light particles of high pT: m^2 from sums of float32 momenta is mostly noise, ours is not."""
    _, v, mask = EXAMPLE.toy_jets(4)
    v, offsets = pack(v, mask)
    momenta = 30 * v[:, :3].double()
    v = torch.cat([momenta, (momenta.square().sum(1, True) + 0.13957**2).sqrt()], 1).float()
    i, j = EXAMPLE.ops.unordered_pairs(offsets)
    have = EXAMPLE.pair_features(v, i, j)
    want = EXAMPLE.pair_features(v.double(), i, j)
    assert (have - want).abs().max() < 2e-5
    whole = v[i] + v[j]
    direct = (whole[:, 3] ** 2 - whole[:, :3].square().sum(1)).clamp(min=1e-8).log()
    assert (direct - want[:, 3]).abs().max() > 1


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert EXAMPLE.main().shape == (8, 10)
    assert "in 8 jets" in capsys.readouterr().out
