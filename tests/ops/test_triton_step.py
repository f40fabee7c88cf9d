"""Views and losses of a step in Triton's interpreter; on a GPU the same tests run on it."""

import pytest
import torch

from jetkern import Jets
from jetkern.objectives import flow
from jetkern.objectives.losses import Classification, FlowMatching
from jetkern.objectives.masking import random_keep
from jetkern.objectives.views import View
from jetkern.packed import offsets_from_counts
from tests.ops.helpers import generator

pytest.importorskip("triton", reason="needs Triton")

COUNTS = {
    "one": [3],
    "empty": [0],
    "empty ones": [0, 2, 0, 0, 5, 1, 0],
    "none": [],
    "many": [i % 9 for i in range(150)],
    "long": [150, 1, 149],
}


def batch(counts, columns=0):
    counts = torch.tensor(counts, dtype=torch.int64)
    source, total = generator(0), int(counts.sum())
    more = {} if not columns else {"columns": torch.randn(total, columns, generator=source)}
    return Jets(
        particles=torch.randn(total, 4, generator=source),
        offsets=offsets_from_counts(counts),
        index=torch.arange(len(counts)) * 7 + 2**40,
        label=torch.randint(5, (len(counts),), generator=source),
        **more,
    )


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("columns", [0, 3])
def test_the_path_is_that_of_the_cpu(counts, columns, launched):
    jets = batch(counts, columns)
    time = torch.rand(len(jets), 2, generator=generator(1))[:, 0]
    statistics = None
    if columns:
        statistics = tuple(tuple(v + 0.1 * i for i in range(4 + columns)) for v in (-0.3, 0.5))

    def path(particles, offsets, index, time, *more):
        own = Jets(particles=particles, offsets=offsets, columns=more[0] if more else None)
        moved, velocity = flow.on_path(own, index, 3, 2, time, statistics)
        return (moved.particles, velocity) if not more else (moved.columns, velocity)

    given = [jets.particles, jets.offsets, jets.index, time]
    given += [jets.columns] if columns else []
    for have, want in zip(launched(path, *given), path(*given), strict=True):
        torch.testing.assert_close(have, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_the_same_particles_are_hidden(counts, launched):
    jets = batch(counts)

    def keep(offsets, index, *hidden):
        particles = jets.particles.to(offsets.device)
        return random_keep(Jets(particles=particles, offsets=offsets), index, 5, 3, *hidden)

    given = [jets.offsets, jets.index]
    want = keep(*given)
    assert torch.equal(launched(keep, *given), want)
    some = (jets.counts * torch.rand(len(jets), generator=generator(2))).long()
    assert torch.equal(launched(keep, *given, some), keep(*given, some))


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_hidden_rows_are_counted(counts, launched):
    jets = batch(counts)
    mask = torch.rand(len(jets.particles), generator=generator(3)) < 0.5

    def ranks(keep, owner, offsets):
        from jetkern.ops.gpu.views import hidden_ranks

        return hidden_ranks(keep, owner, offsets, 4)

    want = [
        int((~mask[begin:row]).sum().clamp(max=4))
        for begin, end in zip(jets.offsets[:-1].tolist(), jets.offsets[1:].tolist(), strict=True)
        for row in range(begin, end)
    ]
    assert launched(ranks, mask, jets.jet_of_particle, jets.offsets).tolist() == want


def gradient(loss, output):
    output = output.clone().requires_grad_()
    value = loss(output)
    (slope,) = torch.autograd.grad(2 * value, output)
    return value.detach(), slope


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("widths", [None, (0.3, 0.2, 1.5, 2.0)])
@pytest.mark.parametrize("fillers", [0, 1])
def test_errors_of_the_velocity(counts, widths, fillers, launched):
    jets = batch(counts)
    fillers = min(fillers, len(jets))
    made = torch.randn(2, len(jets.particles), 4, generator=generator(4))

    def loss(output, target, particles, offsets):
        own = Jets(particles=particles, offsets=offsets, fillers=fillers)
        view = View(own, own, target=target)
        return gradient(lambda out: FlowMatching(widths).sum(out, view), output)

    given = [*made, jets.particles, jets.offsets]
    for have, want in zip(launched(loss, *given), loss(*given), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 5, 188])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("number", [0, 1, 77])
def test_errors_of_classes(classes, timed, number, launched):
    source = generator(5)
    output = 4 * torch.randn(number, classes, generator=source)
    label = torch.randint(classes, (number,), generator=source)
    label[3::7] = -100  # of fillers
    time = torch.rand(number, generator=source)

    def loss(output, label, time):
        jets = Jets(
            particles=output.new_zeros(0, 4), offsets=label.new_zeros(number + 1), label=label
        )
        view = View(jets, jets, time=time if timed else None)
        return gradient(lambda out: Classification().sum(out, view), output)

    given = (output, label, time)
    for have, want in zip(launched(loss, *given), loss(*given), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


def test_a_label_that_is_no_class_is_seen(launched):
    def errors(output, label):
        from jetkern.ops.gpu.errors import class_errors

        return class_errors(output, label)

    assert launched(errors, torch.zeros(2, 3), torch.tensor([0, 3])).isnan()
