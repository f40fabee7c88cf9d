"""The learning rate is a continuous function of the step, positive until the end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetkern.training.schedule import lr_at


@given(total=st.integers(1, 10_000), share=st.floats(0, 1), data=st.data())
def test_rises_to_the_peak_and_falls_to_zero(total, share, data):
    warmup = int(share * (total - 1))
    rate = lambda step: lr_at(step, peak=2.0, warmup_steps=warmup, total_steps=total)  # noqa: E731
    assert rate(warmup) == 2.0
    step = data.draw(st.integers(0, total - 1))
    assert 0 < rate(step) <= 2.0
    if step < warmup:
        assert rate(step + 1) > rate(step)
    else:
        assert rate(step + 1) < rate(step)


def test_known_values():
    rate = lambda step: lr_at(step, peak=1.0, warmup_steps=3, total_steps=13)  # noqa: E731
    assert [rate(s) for s in (0, 1, 2, 3)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(8) == pytest.approx(0.5)
    assert rate(13) == rate(1_000_000) == 0.0


@pytest.mark.parametrize("bad", [{"step": -1}, {"warmup_steps": 11}, {"warmup_steps": -1}])
def test_bad_arguments(bad):
    with pytest.raises(ValueError):
        lr_at(**{"step": 0, "peak": 1.0, "warmup_steps": 0, "total_steps": 10} | bad)
