"""Equal runs give equal bits with two threads, as with one.

PyTorch adds the rows that an indexing backward has twice in the order of its threads, so that equal
runs differed until every such place became a gather whose backward has an order. The jets are many
and the rows wide enough here for torch to split that work.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_seven_objectives import OBJECTIVES

from jetkern import PET, Jets, Objective, PETConfig, ops
from jetkern.jets import offsets_from_counts
from jetkern.objectives import parse_objective
from jetkern.training.optim import build_optimizer, parameter_groups

HERE = Path(__file__).parent


def jets_of(size):
    generator = torch.Generator().manual_seed(size)
    offsets = offsets_from_counts(torch.randint(20, 50, (size,), generator=generator))
    total = int(offsets[-1])
    return Jets(
        particles=torch.randn(total, 4, generator=generator) * 0.4,
        offsets=offsets,
        pid=torch.randint(0, 9, (total,), generator=generator),
        tracks=torch.rand(total, 4, generator=generator),
        label=torch.randint(0, 3, (size,), generator=generator),
        index=torch.arange(size),
    )


def learner_of(objective):
    torch.manual_seed(0)
    config = PETConfig(
        dim=32, layers=1, heads=2, neighbours=2, head_layers=1, num_classes=3,
        parts=parse_objective(objective),
    )  # fmt: skip
    learner = Objective(PET(config))
    groups = parameter_groups(learner.model.named_parameters(), 0.1)
    return learner, build_optimizer("ranger", groups, lr=1e-3, betas=(0.9, 0.99))


def train(objective, batches, killed_after=None):
    """The weights after one step for each batch; killed and continued from its state, if asked."""
    learner, optimizer = learner_of(objective)
    for step, jets in enumerate(batches):
        if step == killed_after:
            state = learner.state_dict(), optimizer.state_dict()
            learner, optimizer = learner_of(objective)
            learner.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        optimizer.zero_grad()
        learner(jets)["loss"].backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


def differing():
    """Objectives of which three runs, one of them killed and continued, are not one."""
    found = []
    for objective in OBJECTIVES:
        for size in (16, 25):
            batches = [jets_of(size), jets_of(size + 1)]
            runs = [train(objective, batches, killed) for killed in (None, None, 1)]
            if not (torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])):
                found.append((objective, size))
    return found


def test_three_runs_on_two_threads_are_one():
    """In a process of its own, whose threads sleep while they wait: other tests run beside it."""
    code = "import torch, test_same_bits as t; print(torch.get_num_threads(), t.differing())"
    passive = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    environment = {**os.environ, **passive, "PYTHONPATH": paths}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.stdout == "2 []\n", run.stderr


def repeated(loss):
    """Names of the nodes behind ``loss`` whose backward adds rows in the order of the threads."""
    seen, todo, found = set(), [loss.grad_fn], []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        if node.name() == "IndexBackward0":
            indices = [i for i in node._saved_indices if i is not None and i.dtype != torch.bool]
            if not indices:
                continue
            rows = torch.stack(torch.broadcast_tensors(*indices)).flatten(1)
            if len(rows.unique(dim=1)[0]) < rows.shape[1]:
                found.append(f"{node.name()} of {node._saved_self_sym_sizes}")
    return found


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_indexing_backward_meets_a_row_twice(objective):
    """What threads did to such a backward shows by chance; that there is one shows always."""
    learner, _ = learner_of(objective)
    assert not repeated(learner(jets_of(20))["loss"])


def test_repeated_rows_are_found():
    rows = torch.ones(3, 2, requires_grad=True)
    assert repeated(rows[torch.tensor([0, 1, 0])].sum())
    assert not repeated(rows[torch.tensor([0, 2, 1])].sum())


def weights(*shapes):
    return [torch.linspace(-1, 1, torch.Size(s).numel()).reshape(s) for s in shapes]


@pytest.mark.parametrize("op", ["pair_bias", "local_block"])
def test_gradients_of_the_references(op):
    jets = jets_of(20)
    particles = jets.particles.requires_grad_()
    neighbours = ops.knn(particles.detach(), jets.offsets, 10)
    embed = ops.MLPParameters(*weights((4, 3), (4,), (1,), (4,), (4, 4), (4,)))

    def gradient():
        if op == "pair_bias":
            out = ops.pair_bias(particles, jets.offsets, embed, backend="reference")
        else:
            first = ops.MLPParameters(*weights((4, 7), (4,), (1,), (4,), (4, 4), (4,)))
            mlp = ops.MLPParameters(*weights((4, 4), (4,), (1,), (4,), (4, 4), (4,)))
            block = ops.BlockParameters(*weights((1,), (4,), (12, 4), (4, 4), (1,), (4,)), mlp)
            out = ops.local_block(particles, neighbours, first, [block], 2, backend="reference")
        loss = out.square().sum()
        assert not repeated(loss)
        return torch.autograd.grad(loss, particles)[0]

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(3))
