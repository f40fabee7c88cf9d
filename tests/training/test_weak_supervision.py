"""Weak supervision and flavour: who is in which sample, what the loss sees, runs end to end."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from jetkern.cli import evaluate, finetune
from jetkern.objectives.views import View
from jetkern.tasks.weak import WeakLoss, jet_numbers, mixed
from tests.factories import write_toy_shards
from tests.objectives.test_objectives import batch


def two_samples(jets=2000):
    found = batch([3] * jets)
    particles = torch.randn(3 * jets, 4, generator=torch.Generator().manual_seed(0))
    label = (torch.arange(jets) % 2 == 0).long()
    return found.replace(particles=particles, label=label)


def test_samples_are_a_property_of_each_jet():
    jets = two_samples()
    sample, used = mixed(jets, 0.1, 7)
    signal = jets.label == 1
    assert sample[signal].all()
    assert used[~signal].all()
    assert abs(int(sample[~signal].sum()) - 500) < 65  # 4 sigma
    assert abs(int(used[signal].sum()) - 100) < 40
    order = torch.randperm(len(jets), generator=torch.Generator().manual_seed(1))
    again, still = mixed(jets.select(order).replace(index=None), 0.1, 7)
    assert torch.equal(again, sample[order])
    assert torch.equal(still, used[order])
    assert not torch.equal(mixed(jets, 0.1, 8)[0], sample)
    assert not mixed(jets, 0.0, 7)[1][signal].any()
    assert len(jet_numbers(jets).unique()) == len(jets)
    with pytest.raises(ValueError, match="no label"):
        mixed(jets.replace(label=None), 0.1, 7)


def test_the_loss_knows_samples_alone():
    jets, loss = two_samples(300), WeakLoss(0.5)
    logits = torch.randn(300, 2, generator=torch.Generator().manual_seed(2))
    sample, used = mixed(jets, 0.5, 0)
    expected = cross_entropy(logits[used], sample[used], reduction="sum")
    torch.testing.assert_close(loss.sum(logits, View(jets, jets)), expected)
    assert int(loss.weight(jets)) == int(used.sum()) < 300
    assert loss.on(View) is None


@pytest.mark.parametrize("task", ["weak", "flavour"])
def test_train_continue_and_judge(task, tmp_path, capsys):
    classes = ["QCD", "top"] if task == "weak" else ["light", "charm", "bottom"]
    for seed, split in enumerate(("train", "val", "test")):
        write_toy_shards(tmp_path / "data" / split, classes, jets=512, seed=seed, extras=False)
    flags = (
        f"{task} --data {tmp_path}/data --out {tmp_path}/run --preset micro --steps 30 --lr 3e-3 "
    )
    flags += "--warmup-steps 0 --batch-size 64 --val-every 15 --threads 1 "
    if task == "weak":
        assert finetune.main(flags.split()) == 1
        assert "say how many signal jets" in capsys.readouterr().err
        assert finetune.main(f"{flags} --signal-jets 999".split()) == 1
        assert "--signal-jets 999: there are" in capsys.readouterr().err
        flags += "--signal-jets 100"
    assert finetune.main(flags.split()) == 0
    if task == "weak":
        assert finetune.main(flags.replace("jets 100", "jets 50").split()) == 1
        assert "signal_jets: 100 -> 50" in capsys.readouterr().err
    out = tmp_path / "results"
    words = f"{tmp_path}/run --data {tmp_path}/data --out {out} --bootstrap 3 --threads 1"
    assert evaluate.main(words.split()) == 0
    found = json.loads((out / "report.json").read_text())["models"]["run"]
    if task == "weak":
        assert 0 < found["at_efficiency"]["value"] <= 10
        assert found["tagger"]["auc"]["value"] > 0.6
        assert "SIC at 1 % background" in (out / "table.md").read_text()
    else:
        assert found["accuracy"]["value"] > 0.4
        assert set(found["against_background"]) == {"charm", "bottom"}


def test_what_does_not_fit_is_said(jetclass, toptag, tmp_path, capsys):
    more = ["--out", str(tmp_path / "run"), "--signal-jets", "5"]
    assert finetune.main(["weak", "--data", str(jetclass), *more]) == 1
    assert "has 3 classes; weak supervision needs two" in capsys.readouterr().err
    assert finetune.main(["flavour", "--data", str(toptag), *more]) == 1
    assert "has the classes QCD, top, not light, charm, bottom" in capsys.readouterr().err
