"""Tensors that are kept, and held by who records them."""

import gc
import weakref

import torch

from jetkern.kept import holding, kept


@kept
def filled(number: int) -> torch.Tensor:
    return torch.full((2,), number)


def test_a_tensor_is_made_once_and_forgotten_after_many_others():
    first = filled(-1)
    assert filled(-1) is first
    place = weakref.ref(first)
    del first
    for number in range(70):
        filled(number)
    gc.collect()
    assert place() is None


def test_what_a_recording_reads_is_held_as_long_as_it_is():
    before = filled(-2)
    with holding() as outer, holding() as held:
        assert filled(-2) is before
    assert any(tensor is before for tensor in held)
    assert any(tensor is before for tensor in outer)
    filled(-3)
    assert len(held) == 1
    place = weakref.ref(before)
    del before
    for number in range(70):
        filled(number)
    gc.collect()
    assert place() is held[0]
