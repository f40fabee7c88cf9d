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


def test_losses_have_a_panel_each(tmp_path, drawn):
    """Losses of different scales do not share an axis."""
    records = [
        {"kind": "train", "step": s, "loss": 9.0, "classifier": 0.3, "mpm": 8.7, "lr": 1.0}
        for s in (1, 2)
    ]
    plots.training_figure({"a": records}, tmp_path / "training.png")
    assert [axes.get_title() for axes in drawn] == ["loss", "classifier", "mpm"]
    assert [axes.lines[0].get_ydata()[0] for axes in drawn] == [9.0, 0.3, 8.7]


@pytest.mark.parametrize("span", [3, 59, 61, 119, 150, 1000])
def test_bins_of_integers_hold_equally_many(span):
    edges = plots.bin_edges(np.arange(span).repeat(3))
    width = np.diff(edges)
    assert len(width) <= 61
    assert (width == width[0]).all()
    assert width[0] == int(width[0])
    assert (edges % 1 == 0.5).all()
    assert edges[-1] > np.quantile(np.arange(span).repeat(3), 0.995)


def test_bins_of_what_does_not_vary_or_is_not_there():
    for values in ([], [2.0, 2.0], [7, 7]):
        assert (np.diff(plots.bin_edges(np.array(values))) > 0).all()


def test_names_keep_apart_and_do_nothing(tmp_path, drawn):
    curve = roc_curve(np.array([4.0, 3.0, 2.0, 1.0, 0.0]), [1, 0, 1, 0, 0])
    names = [f"model {i} $x^{{ \x1b[2J" for i in range(6)]
    plots.roc_figure(dict.fromkeys(names, curve), tmp_path / "roc.png")
    labels = [t for t in drawn[0].texts if "model" in t.get_text()]
    assert all(r"\$x" in t.get_text() and "\x1b" not in t.get_text() for t in labels)
    heights = sorted(t.xyann[1] for t in labels)
    assert (np.diff(heights) > 0.05).all()


def test_a_figure_that_cannot_be_written_is_known_before(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("x")
    for name, problem in (
        ("a.xyz", "ends in one of"),
        ("a", "ends in one of"),
        ("folder.png", "is a folder"),
        ("file/a.png", "file"),
    ):
        with pytest.raises((ValueError, OSError), match=problem):
            plots.prepare(tmp_path / name)
    plots.prepare(tmp_path / "new" / "a.png")
    assert not list((tmp_path / "new").iterdir())
