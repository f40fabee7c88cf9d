"""The benchmark of showers runs, and says what it judged."""

import json
import sys

import pytest

from bench import showers


def test_three_models_are_judged(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(showers, "JUDGED", 20)
    monkeypatch.setattr(showers, "BATCH", 2)
    monkeypatch.setattr(showers, "MOST", 5)
    monkeypatch.setattr(showers, "describe", lambda *_: {})
    monkeypatch.setattr(sys, "argv", ["x", "--updates", "2", "--out", str(tmp_path / "r.json")])
    showers.main()
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["delay"]["nats"]["sum"] > 0
    assert len(found["chain"]["draw"]["w1"]) == 8
    assert "threshold" in capsys.readouterr().out
