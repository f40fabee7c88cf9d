import json
from pathlib import Path

import pytest
import torch

from jetkern import Shards, Stream, cli
from jetkern.tokenizers import KMeans, Tokenizer
from jetkern.training import tokenize as fits
from jetkern.training.checkpoints import RunError
from jetkern.training.tokenize import load_tokenizer
from tests.factories import write_toy_shards
from tests.ops.helpers import generator, threads


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    for seed, split in enumerate(("train", "val")):
        write_toy_shards(folder / split, ["QCD", "Hbb", "Zqq"], jets=1024, seed=seed)
    return folder


def fit(shards: Path, out: Path, *more: str) -> None:
    words = f"kmeans --data {shards} --out {out} --codes 64 --batch-size 256 --threads 1".split()
    with pytest.raises(SystemExit) as end:
        cli.run("tokenize", [*words, *more])
    assert end.value.code == 0


def test_bins_are_found_without_a_fit(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "bins"
    words = f"bins --data {shards} --out {out} --codes 70 --features delta_eta delta_phi ln_pt"
    with pytest.raises(SystemExit) as end:
        cli.run("tokenize", [*words.split(), "--threads", "1"])
    assert end.value.code == 0
    assert len(load_tokenizer(out).codes) == 64
    assert json.loads((out / "report.json").read_text())["dead"] < 0.2


def points(n: int, seed: int = 0) -> torch.Tensor:
    """Points about twelve centres far apart."""
    g = generator(seed)
    centres = 4 * torch.randn(12, 3, generator=generator(9))
    which = torch.randint(0, 12, (n,), generator=g)
    return (centres[which] + 0.05 * torch.randn(n, 3, generator=g)).clamp(-5.2, 5.2)


def test_all_clusters_are_found_and_dead_codes_are_replaced() -> None:
    kmeans = KMeans(points(600), 60, seed=1, every=2, until=60)
    kmeans.codes[10:] = 100.0  # nobody's
    for step in range(80):
        kmeans.update(kmeans.sums(points(600, step)))
    held_out = points(3000, 1000)
    used = kmeans.sums(held_out)[:, 0]
    assert (used == 0).sum() <= 1
    distance = torch.cdist(held_out, kmeans.codes).amin(1)
    assert distance.mean() < 0.09
    assert len(used) == 60


def test_codes_are_means_weighted_by_the_square_of_the_update() -> None:
    kmeans = KMeans(torch.tensor([[0.0], [10.0]]), 2, seed=0, every=100, until=0)
    low = int(kmeans.codes[:, 0].argmin())
    for batch in ([[1.0], [2.0], [9.0]], [[3.0], [9.5]]):
        kmeans.update(kmeans.sums(torch.tensor(batch)))
    assert kmeans.codes[low].item() == pytest.approx((0.25 * 3 + 3) / (0.25 * 2 + 1))
    assert kmeans.codes[1 - low].item() == pytest.approx((0.25 * 9 + 9.5) / 1.25)


def test_the_codes_are_the_same_bits_for_any_split_of_a_batch_and_any_threads() -> None:
    def codes(parts: int) -> torch.Tensor:
        kmeans = KMeans(points(600), 60, seed=1, every=2, until=60)
        for step in range(10):
            batch = points(600, step)
            split = [kmeans.sums(batch[part::parts]) for part in range(parts)]
            kmeans.update(torch.stack(split).sum(0))
        return kmeans.codes

    want = codes(1)
    for parts, number in ((2, 1), (3, 2)):
        with threads(number):
            assert torch.equal(codes(parts), want)


def test_ranks_of_a_stream_share_the_batch(shards: Path) -> None:
    """What the processes add up is what one of them would have."""
    tokenizer = Tokenizer.blank(("delta_eta", "ln_pt"), 0)
    whole = Stream(Shards(shards / "train"), batch_size=256, prefetch=0)
    parts = [
        Stream(Shards(shards / "train"), batch_size=256, rank=r, world_size=2, prefetch=0)
        for r in range(2)
    ]
    first = tokenizer.scaled(next(iter(whole)))[0]
    kmeans = KMeans(first, 20, seed=0, every=5, until=0)
    sums = [kmeans.sums(tokenizer.scaled(next(iter(part)))[0]) for part in parts]
    assert torch.equal(sums[0] + sums[1], kmeans.sums(first))


def test_the_command_fits_and_an_interrupted_fit_ends_with_the_same_bits(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(shards, tmp_path / "whole")
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["codes"] == 64
    assert report["dead"] < 0.05
    whole = load_tokenizer(tmp_path / "whole")
    assert whole.features == (
        "delta_eta",
        "delta_phi",
        "ln_pt",
        *("d0", "d0_error", "dz", "dz_error"),
    )
    assert report["fingerprint"] == whole.fingerprint

    monkeypatch.setattr(fits, "SAVE_SECONDS", 0.0)
    update, seen = KMeans.update, []

    def dying(self: KMeans, sums: torch.Tensor) -> None:
        seen.append(0)
        if len(seen) == 20:
            raise KeyboardInterrupt
        update(self, sums)

    monkeypatch.setattr(KMeans, "update", dying)
    words = (
        f"kmeans --data {shards} --out {tmp_path / 'killed'} --codes 64 --batch-size 256".split()
    )
    with pytest.raises(SystemExit) as end:
        cli.run("tokenize", words)
    assert end.value.code == 130
    with pytest.raises(RunError, match="not a tokeniser whose fit has ended"):
        load_tokenizer(tmp_path / "killed")
    fit(shards, tmp_path / "killed")  # "seen" is past 20
    assert len(seen) == 50 + 1
    again = load_tokenizer(tmp_path / "killed")
    assert again.fingerprint == whole.fingerprint
    states = [
        next((tmp_path / n / "checkpoints").glob("step-*51/state.pt")) for n in ("whole", "killed")
    ]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_a_scale_alone_and_mistakes(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        with pytest.raises(SystemExit) as end:
            cli.run("tokenize", words)
        assert end.value.code
        return capsys.readouterr().err

    base = ("--data", str(shards), "--out", str(tmp_path / "scale"))
    with pytest.raises(SystemExit) as end:
        cli.run("tokenize", ["scale", *base, "--features", "delta_eta", "ln_pt"])
    assert end.value.code == 0
    scale = load_tokenizer(tmp_path / "scale")
    assert scale.codes.shape == (0, 2)
    assert "started with other settings" in said("scale", *base)
    other = ("--data", str(shards), "--out", str(tmp_path / "other"))
    assert "take some of delta_eta" in said("scale", *other, "--features", "ln_pt", "delta_eta")
    few = said("kmeans", *other, "--codes", "100000")
    assert "100000 codes need at least as many particles" in few
