"""Identities and tracks as columns of a generator, and back."""

import math

import pytest
import torch

from jetkern.jets import Jets
from jetkern.model.columns import IDENTITY, UNIT, joined, parted, with_columns
from jetkern.model.columns import without_columns as back
from jetkern.model.config import fields_of

TRACKS = {
    "tanh": ("tanh_d0", "d0_error", "tanh_dz", "dz_error"),
    "asinh": ("asinh_d0", "d0_error", "asinh_dz", "dz_error"),
    "raw": ("d0", "d0_error", "dz", "dz_error"),
}
SCALES = {"tanh": torch.tanh, "asinh": torch.asinh, "raw": lambda x: x}


def jets_of(pid, mm, scale="tanh"):
    mm = torch.tensor(mm)
    tracks = torch.stack([SCALES[scale](mm), 0.1 * mm.abs(), SCALES[scale](-mm), mm.abs()], 1)
    return Jets(
        particles=torch.randn(len(pid), 4),
        offsets=torch.tensor([0, 1, len(pid)]),
        pid=torch.tensor(pid),
        tracks=tracks,
    )


@pytest.mark.parametrize("scale", TRACKS)
def test_columns_are_undone(scale):
    charged = jets_of([1, 2, 3, 4, 5, 8], [0.0, 0.02, -0.3, 1.0, -4.0, 6.0], scale)
    names = (*IDENTITY, *TRACKS[scale])
    made = with_columns(charged, names)
    assert made.columns.shape == (6, 10)
    assert made.pid is None
    assert made.tracks is None
    assert fields_of(names) == ("pid", "tracks")
    again = back(parted(made, joined(made)), names)
    assert torch.equal(again.pid, charged.pid)
    torch.testing.assert_close(again.tracks, charged.tracks, rtol=1e-4, atol=1e-6)
    assert again.columns is None
    assert torch.equal(again.particles, charged.particles)


def test_millimetres_are_the_same_on_every_scale():
    mm = [0.0, 0.05, -0.7, 2.0]
    columns = [with_columns(jets_of([8] * 4, mm, scale), TRACKS[scale]).columns for scale in TRACKS]
    for other in columns[1:]:
        torch.testing.assert_close(other, columns[0], rtol=1e-4, atol=1e-4)
    assert columns[0][1, 0] == pytest.approx(math.asinh(0.05 / UNIT), rel=1e-4)


def test_what_tanh_has_lost_is_finite_and_stays_lost():
    """Float32's tanh is 1 from 9.01 mm on."""
    far = with_columns(jets_of([8, 8], [12.0, -500.0]), TRACKS["tanh"])
    assert far.columns.isfinite().all()
    again = back(far, TRACKS["tanh"])
    assert again.tracks[:, 0].tolist() == pytest.approx([1.0, -1.0])
    beyond = far.replace(columns=far.columns * 3)
    assert back(beyond, TRACKS["tanh"]).tracks[:, ::2].abs().max() <= 1
    exact = with_columns(jets_of([8, 8], [12.0, -500.0], "asinh"), TRACKS["asinh"])
    assert exact.columns[0, 0] == pytest.approx(math.asinh(120), rel=1e-5)


def test_the_largest_flag_decides_and_neutral_particles_have_no_track():
    jets = jets_of([6, 7, 0, 8], [0.3, 0.3, 0.3, 0.3])
    columns = with_columns(jets, (*IDENTITY, *TRACKS["tanh"])).columns
    assert columns[2, :6].tolist() == [0] * 6
    columns[:, 1:6] += torch.tensor([0.2, 0.1, 0.0, 0.4, 0.4])
    columns[:, 0] = torch.tensor([0.3, -0.2, -0.1, -0.6])
    again = back(jets.replace(columns=columns), (*IDENTITY, *TRACKS["tanh"]))
    assert again.pid.tolist() == [6, 7, 4, 1]  # the flags of an unknown one are equal
    assert again.tracks[:2].abs().max() == 0
    assert again.tracks[3, 0] == pytest.approx(math.tanh(0.3), rel=1e-4)
    errors = with_columns(jets, TRACKS["tanh"])
    errors.columns[:, 1] = -1
    assert back(errors, TRACKS["tanh"]).tracks[:, 1].tolist() == [0] * 4


def test_kinematics_alone_and_jets_without_a_field():
    jets = jets_of([1, 6], [0.1, 0.0])
    assert with_columns(jets, ()) is jets
    assert back(jets, ()) is jets
    assert joined(jets) is jets.particles
    with pytest.raises(ValueError, match="makes pid, but the jets to learn from have none"):
        with_columns(jets.replace(pid=None), IDENTITY)
    with pytest.raises(ValueError, match=r"columns must be \(T, C\)"):
        jets.replace(columns=torch.zeros(2))
