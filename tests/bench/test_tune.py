"""The tuner, on Triton's interpreter where there is no GPU."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from bench import tune
from bench.cases import make
from bench.jets import batch
from jetkern.ops import dispatch
from jetkern.ops.gpu import launch
from jetkern.ops.knn.triton import knn_kernel
from tests.ops.helpers import triton_device


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(launch, "TABLES", tmp_path)
    launch._table.cache_clear()
    yield tmp_path / f"sm{launch.family(torch.device(triton_device()))}.json"
    launch._table.cache_clear()


def test_the_fastest_right_settings_are_kept_and_used(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = make("knn", "micro", batch("10", 40, "").to(triton_device()))
    slow, fast, broken = ({"ROWS": 16}, {"ROWS": 32}, {"ROWS": 17})
    monkeypatch.setattr(tune, "candidates", lambda: {"knn": [slow, fast, broken]})
    times = {16: 3.0, 32: 1.0}

    def seconds(case, precision, repeats):
        asked = launch.launch_settings(knn_kernel, "k15", torch.device("cpu"), {"ROWS": 16})
        return times[asked["ROWS"]]

    monkeypatch.setattr(tune, "seconds", seconds)
    chosen: dict = {}
    settled: set = set()
    tune.tune(case, "ieee", chosen, settled, table, repeats=1)
    assert json.loads(table.read_text(encoding="utf-8")) == {"knn": {"k15": {"ROWS": 32}}}
    said = capsys.readouterr()
    assert "knn [k15]: {'ROWS': 32}, 0.33 of the default's time, 3 tried" in said.out
    assert "knn [k15] {'ROWS': 17}: " in said.err
    device = torch.device(triton_device())
    launch._table.cache_clear()
    assert launch.launch_settings(knn_kernel, "k15", device, {"ROWS": 16, "W": 4}) == {
        "ROWS": 32,
        "W": 4,
    }

    times[32] = 9.0  # what is settled is not tuned again
    tune.tune(case, "ieee", chosen, settled, table, repeats=1)
    assert chosen == {"knn": {"k15": {"ROWS": 32}}}
    assert [p.name for p in table.parent.iterdir()] == [table.name]


@pytest.mark.parametrize("again", [False, True])
def test_the_command_keeps_good_rows_and_tunes_again_from_the_default(
    table: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    device = torch.device(triton_device())
    case = make("knn", "micro", batch("10", 40, "").to(device))
    old = {"knn": {"k15": {"ROWS": 64}}, "mlp": {"another": {"ROWS": 8}}, "measured on": {}}
    table.write_text(json.dumps(old), encoding="utf-8")
    monkeypatch.setattr(tune, "candidates", lambda: {"knn": [{"ROWS": 32}, {"ROWS": 64}]})
    times = {16: 3.0, 32: 1.0, 64: 1.01}

    def seconds(case, precision, repeats):
        return times[launch.launch_settings(knn_kernel, "k15", device, {"ROWS": 16})["ROWS"]]

    monkeypatch.setattr(tune, "seconds", seconds)
    monkeypatch.setattr(tune, "batch", lambda *_: SimpleNamespace(to=lambda _: None))
    monkeypatch.setattr(tune, "make", lambda *_: case)
    monkeypatch.setattr(launch, "family", lambda _: int(table.stem.removeprefix("sm")))
    dispatch.triton_gpu()  # is kept: asked before there seems to be a GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    command = ["--ops", "knn", "--sizes", "micro", "--precisions", "ieee", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["bench.tune", *command, *(["--again"] if again else [])])
    tune.main()
    new = json.loads(table.read_text(encoding="utf-8"))
    assert new.pop("measured on").get("gpu") == ("a GPU" if again else None)
    assert new == {"knn": {"k15": {"ROWS": 32 if again else 64}}, "mlp": {"another": {"ROWS": 8}}}


def test_rows_that_do_nothing_are_named() -> None:
    case = make("knn", "micro", batch("10", 4, "").to(triton_device()))
    with launch.settings_asked() as asked:
        tune.results(case, "ieee")
    good = {"knn": {"k15": {"ROWS": 32}}, tune.NOTE: {"gpu": "a GPU"}}
    assert tune.dead(good, asked) == []
    bad = {"knn": {"k15": {"ROW": 32}, "k16": {"ROWS": 32}}, "other": {"k15": {}}}
    assert tune.dead(bad, asked) == ["knn [k15]", "knn [k16]", "other [k15]"]


def test_the_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "launch" / "sm80.json"
    tune.write({"knn": {}}, path)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(TypeError):
        tune.write({"knn": {"k15": object()}}, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert json.loads(path.read_text(encoding="utf-8")) == {"knn": {}}


def test_a_small_gain_leaves_the_default(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("knn", "micro", batch("10", 40, "").to(triton_device()))
    monkeypatch.setattr(tune, "candidates", lambda: {"knn": [{"ROWS": 32}]})
    monkeypatch.setattr(tune, "seconds", lambda *_: 1.0)
    tune.tune(case, "ieee", {}, set(), table, repeats=1)
    assert json.loads(table.read_text(encoding="utf-8")) == {"knn": {"k15": {}}}


def test_settings_with_another_result_are_refused(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = make("knn", "micro", batch("10", 40, "").to(triton_device()))
    monkeypatch.setattr(tune, "candidates", lambda: {"knn": [{"ROWS": 32}]})
    monkeypatch.setattr(tune, "agree", lambda *_: False)
    tune.tune(case, "ieee", {}, set(), table, repeats=1)
    assert json.loads(table.read_text(encoding="utf-8")) == {"knn": {"k15": {}}}
    assert "wrong result, left out" in capsys.readouterr().err


def test_agreement_is_relative_and_exact_for_rows() -> None:
    a = torch.tensor([1.0, -2.0])
    assert tune.agree([a], [a * (1 + 1e-3)], "tf32")
    assert not tune.agree([a], [a * (1 + 1e-2)], "tf32")
    assert not tune.agree([torch.full((2,), torch.nan)], [a], "bf16")
    assert not tune.agree([torch.tensor([1, 2])], [torch.tensor([1, 3])], "bf16")


def test_every_candidate_is_a_setting_of_its_kernel() -> None:
    for kernel, tried in tune.candidates().items():
        assert 0 < len(tried) <= 40, kernel
        for settings in tried:
            assert settings, kernel
            assert all(n.isupper() or n in ("num_warps", "num_stages") for n in settings), kernel
            assert all(isinstance(v, int) and v > 0 for v in settings.values()), kernel
