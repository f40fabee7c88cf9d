"""Figures are drawn from what there is, also where that is little."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from jetkern import plots
from jetkern.metrics import roc_curve


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the figures that are saved."""
    axes = []
    save = Figure.savefig

    def spy(self, *args, **kwargs):
        axes.extend(self.axes)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return axes


def test_roc_shows_rejection_over_signal_efficiency(tmp_path, drawn):
    scores = np.array([4.0, 3.0, 2.0, 1.0, 0.0])
    curve = roc_curve(scores, [1, 0, 1, 0, 0])
    plots.roc_figure({"model": curve}, tmp_path / "roc.png", signal="top", background="QCD")
    line = drawn[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0.5, 1, 1, 1])
    np.testing.assert_allclose(line.get_ydata(), [3, 3, 1.5, 1])
    assert drawn[0].get_yscale() == "log"
    assert drawn[0].get_xlabel() == "top efficiency"
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_training_curves(tmp_path, drawn):
    records = [
        {"kind": "train", "step": 1, "loss": 2.0},
        {"kind": "train", "step": 2, "loss": None},
        {"kind": "validation", "step": 2, "loss": 1.5},
    ]
    plots.training_figure({"a": records, "empty": []}, tmp_path / "training.pdf")
    train, validation = drawn[0].lines
    assert np.isnan(train.get_ydata()[1])
    assert list(validation.get_ydata()) == [1.5]
