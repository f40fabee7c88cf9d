"""What ``test_graphed`` runs in two processes: each records its step, the gradients are summed."""

import torch
from test_graphed import batches, check_updates, later, made

from jetkern import Jets
from jetkern.training.distributed import join_world
from jetkern.training.graphed import GraphedStep


def main() -> None:
    with join_world("cpu") as world:
        for parts in (("classifier", "generator"), ("classifier", "generator", "mpm")):
            steps = [made(parts, world=world) for _ in range(2)]
            check_updates(*steps, 9, seed=world.rank)
            values = steps[1].weights.values
            assert world.sum(values.clone()).div(world.size).equal(values)
        # One process launches plainly what does not fit, while the other replays.
        plain, recorded = (made(("mpm",), world=world) for _ in range(2))
        graph = GraphedStep(recorded, record=later)
        for number, jets in enumerate(batches(7, seed=world.rank)):
            if number == 5 and not world.is_main:
                jets = Jets.concat([jets, *batches(8)])
            plain(jets, number)
            graph(jets, number)
        assert graph.plain == world.rank
        torch.testing.assert_close(recorded.weights.values, plain.weights.values)


if __name__ == "__main__":
    main()
