import sys

import pytest
import torch

from bench import particle_transformer as bench


def test_times_are_ratios_to_ours() -> None:
    ticks = iter(float(i * i) for i in range(1000))
    runs = {kind: lambda: None for kind in bench.MEASURES}
    seconds = bench.measure({"jetkern": runs, "weaver": runs}, 1, lambda: next(ticks))
    lines = bench.rows_of({"version": 1, "threads": 1, "seconds": seconds})
    assert [line[2] for line in lines] == ["jetkern", "weaver"]
    assert lines[1][3] == "9e+03 ms (0%), 1.8x"


def test_momenta_are_those_of_the_jets_and_padding_is_weaver_s() -> None:
    jets = bench.load_jets("", 4)
    x, v = bench.inputs(jets)
    assert torch.allclose(
        (v[:, 0] ** 2 + v[:, 1] ** 2).sqrt().log(), jets.particles[:, 2], atol=1e-5
    )
    rows, momenta, mask = bench.padded(jets, x, v, 128)
    assert rows.shape == (4, 17, 128)
    assert torch.equal(momenta.mT[mask[:, 0]], v)


def test_without_weaver_it_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(bench, "describe", lambda threads: {"threads": threads})
    monkeypatch.setitem(sys.modules, "weaver", None)
    monkeypatch.setattr(sys, "argv", ["bench", "--peer", str(tmp_path), "--batch", "2"])
    with pytest.raises(SystemExit, match=r"bench.particle_transformer: .*weaver.*see --help"):
        bench.main()
