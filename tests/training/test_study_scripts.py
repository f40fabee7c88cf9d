"""The scripts of studies/ that are no file for jetkern study: whole, with a few updates."""

import argparse
import json
import sys

import pytest
import torch

from studies import masked, showers, token_jets, tokens
from tests.factories import write_toy_shards


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_tokens_goes_on_where_it_was(jetclass, toptag, tmp_path, monkeypatch, capsys, one_thread):
    data, out = tmp_path / "shards", tmp_path / "out"
    data.mkdir()
    (data / "jetclass").symlink_to(jetclass)
    (data / "toptag").symlink_to(toptag)
    words = f"--data {data} --out {out} --codes 8 --steps 2 --tune-steps 2 --labels 50 --seeds 2"
    words += " --test-jets 100 --inputs tokens"
    monkeypatch.setattr(sys, "argv", ["tokens.py", *words.split()])
    tokens.main()
    table = (out / "table.md").read_text()
    lines = table.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == list(tokens.STARTS)
    assert all(line.count("±") == 2 for line in lines[2:])
    capsys.readouterr()
    tokens.main()  # all of it is there
    assert (out / "table.md").read_text() == table
    assert "step 2/2" not in capsys.readouterr().out
    told = ["--body", str(out / "pretrained-tokens"), "--tokenizer", str(out / "tokenizer")]
    again = [*words.split(), *told, "--out", str(tmp_path / "again")]
    monkeypatch.setattr(sys, "argv", ["tokens.py", *again])
    tokens.main()
    assert (tmp_path / "again" / "table.md").read_text() == table
    assert not (tmp_path / "again" / "pretrained-tokens").exists()
    monkeypatch.setattr(sys, "argv", ["tokens.py", *again[:-4]])
    with pytest.raises(SystemExit):
        tokens.main()
    assert "go together" in capsys.readouterr().err


@pytest.mark.slow
def test_token_jets_goes_on_where_it_was(jetclass, tmp_path, monkeypatch, capsys, one_thread):
    pytest.importorskip("fastjet")
    data, out = tmp_path / "shards", tmp_path / "out"
    for split in ("train", "val", "test"):
        write_toy_shards(data / split, ["QCD", "top"], jets=192, seed=len(split))
    words = f"--data {data} --other {jetclass} --out {out} --codes 8 --vq-steps 2 --steps 2"
    words += " --lr 2e-3 --tune 2 --sizes 40 --drawn 20 --two-sample 2 --seeds 0"
    monkeypatch.setattr(sys, "argv", ["token_jets.py", *words.split(), "--parts", "transfers"])
    token_jets.main()  # a part does without those before it
    shared = [*words.split()[:-1], "0", "1", "--parts", "transfers", "--bodies", "1"]
    monkeypatch.setattr(sys, "argv", ["token_jets.py", *shared])
    token_jets.main()
    assert [p.name for p in (out / "decoders").glob("other-*")] == ["other-0"]
    settings = json.loads((out / "decoders" / "other-0" / "config.json").read_text())
    assert settings["settings"]["optim"]["lr"] == 2e-3
    assert (out / "decoders" / "tuned-40-1").is_dir()
    monkeypatch.setattr(sys, "argv", ["token_jets.py", *words.split()])
    token_jets.main()
    table = (out / "table.md").read_text()
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert [n for n in names if n in token_jets.KINDS] == list(token_jets.KINDS)
    assert "vqvae: drawn" in names
    assert "40 jets, pre-trained" in names
    files = {p: p.stat().st_mtime_ns for p in out.rglob("*.json")}
    capsys.readouterr()
    token_jets.main()  # all of it is there
    assert (out / "table.md").read_text() == table
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert "step 2/2" not in capsys.readouterr().out


@pytest.fixture
def options(jetclass, tmp_path):
    write_toy_shards(tmp_path / "shards" / "test", ["QCD", "Hbb", "Zqq"], jets=128, seed=5)
    for split in ("train", "val"):
        (tmp_path / "shards" / split).symlink_to(jetclass / split)
    return argparse.Namespace(
        jetclass=tmp_path / "shards", flavour=tmp_path / "none", out=tmp_path / "out",
        preset="micro", parts=("tokens", "probes"), seeds=[0, 1], codes=8, vq_steps=2, steps=2,
        batch_size=32, lr=1e-3, labels=[50], probe_steps=[1], tune_steps=1, test_jets=64,
    )  # fmt: skip


@pytest.mark.slow
def test_masked_makes_each_number_once(options, monkeypatch):
    bodies = {name: masked.BODIES[name] for name in ("regression, identity", "k-means, identity")}
    monkeypatch.setattr(masked, "BODIES", bodies)
    options.out.mkdir()
    study = masked.Study(options)
    study.run()
    tables = (options.out / "table.md").read_text()
    assert "| kmeans, 8 |" in tables
    assert "| regression, identity | regression |" in tables
    row = next(line for line in tables.splitlines() if line.startswith(f"| {masked.SCRATCH}"))
    assert row.count("±") == 1
    results = json.loads((options.out / "results.json").read_text())
    assert len([key for key in results if key.startswith("probe/")]) == 2 * 4
    again = masked.Study(options)
    monkeypatch.setattr(again, "tuned", None)  # nothing is trained again
    again.run()
    assert again.results == study.results


def test_a_cell_says_how_many_seeds_it_lacks(options):
    study = masked.Study(options)
    assert study.cell("probe/a/{}/50", 1) == ""
    study.results = {"probe/a/0/50": 1.0}
    assert study.cell("probe/a/{}/50", 1) == "1.0 (1)"
    study.results["probe/a/1/50"] = 3.0
    assert study.cell("probe/a/{}/50", 1) == "2.0 ± 1.4"


@pytest.mark.slow
def test_showers_goes_on_where_it_was(tmp_path, monkeypatch, capsys, one_thread):
    for name, value in {"JUDGED": 20, "BATCH": 2, "MOST": 5, "POOL": 40, "OF_POOL": 4}.items():
        monkeypatch.setattr(showers, name, value)
    monkeypatch.setattr(showers, "CODES", 8)
    tokens = {**showers.KINDS[showers.TOKENS], "classes": (8,)}
    monkeypatch.setitem(showers.KINDS, showers.TOKENS, tokens)
    words = ["showers.py", "--out", str(tmp_path / "out"), "--updates", "2", "--seeds"]
    monkeypatch.setattr(sys, "argv", [*words, "0", "--kinds", "delay"])
    showers.main()
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("delay-*.json")}
    assert len(kept) == 1
    monkeypatch.setattr(sys, "argv", [*words, "0", "1"])
    showers.main()
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    table = (tmp_path / "out" / "table.md").read_text()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines()}
    assert [c.strip() for c in rows[""]] == [*showers.KINDS, "floor"]
    assert all("±" in cell for cell in rows["nats a hit"][:-1])
    assert rows["W1 of hits"][-1].strip() != ""
    # Tokens have no likelihood by stream, and no end to draw apart.
    assert (
        rows["nats of layer"][-2].strip() == rows["spread of hits, end at 4.7 %"][-2].strip() == ""
    )
