"""AUC against time: our training beside that of the eager reference, update by update.

python -m bench.learning SHARDS --peer DIR [--updates 400] [--out FILE] [--figure FILE]

SHARDS has train and test jets of two classes. omnilearned 0.2.0 (taken from DIR: pip install
--no-deps --target DIR omnilearned==0.2.0 einops torchdiffeq) starts from our weights and gets the
same batches in the same order, padded to the longest jet; optimiser (Lion), rates, decay and
clipping are the same, and each drops features by its own random numbers. They take turns, a block
of updates each. Time is that of the updates alone; with one thread it is in CPU seconds, which a
busy machine leaves nearly as they are. Our network judges both sets of weights, on the same test
jets: before the first update the two networks' logits differ by at most "outputs", where neighbours
are equally far.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor
from tqdm import tqdm

from bench.machine import command, describe, write_results
from bench.peers import omnilearned, omnilearned_loss, padded_jets
from bench.sampling import clock
from jetkern import PET, Jets
from jetkern.data import Shards, Stream
from jetkern.evaluation.generate import first_jets
from jetkern.interop.omnilearned import convert
from jetkern.machine import repeating
from jetkern.metrics.classification import area_under_roc
from jetkern.model.presets import SIZES, model_preset
from jetkern.objectives import Objective
from jetkern.plots import STYLE, label_curves, save, sheet
from jetkern.tables import table
from jetkern.training.distributed import World
from jetkern.training.flat import FlatParameters
from jetkern.training.optim import Lion, set_lr
from jetkern.training.schedule import lr_at
from jetkern.training.step import Step

DECAY, CLIP = 0.1, 1.0
PEER = "omnilearned 0.2.0"
Update = Callable[[Jets, int], None]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("shards", type=Path, help="folder with train and test of two classes")
    add("--peer", default="", help="folder that omnilearned is installed in; none for ours alone")
    add("--size", default="micro", choices=SIZES, help="of the models (default %(default)s)")
    add("--updates", type=int, default=400, help="of each (default %(default)s)")
    add("--block", type=int, default=25, help="updates of a turn (default %(default)s)")
    add("--batch", type=int, default=64, help="jets of an update (default %(default)s)")
    add("--lr", type=float, default=1e-3, help="peak, after a tenth of the updates")
    add("--test-jets", type=int, default=4000, help="to judge by (default %(default)s)")
    add("--seed", type=int, default=0, help="of weights and order")
    add("--threads", type=int, default=1, help="CPU threads of torch (default %(default)s)")
    add("--out", type=Path, help="file for the results (JSON)")
    add("--figure", type=Path, help="file for the figure")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options)
    print(shown(result))
    write_results(options.out, result)
    if options.figure:
        draw(result, options.figure)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both curves; written to ``options.out`` after each turn."""
    train, test = (Shards(options.shards / split) for split in ("train", "test"))
    changes = {"num_classes": len(train.classes), "use_pid": False, "use_tracks": False}
    torch.manual_seed(options.seed)
    model = PET(model_preset(options.size, ("classifier",), **changes))
    judge = PET(model.config).eval()
    jets = first_jets(test, min(options.test_jets, test.num_jets))
    ours: dict[str, Any] = {"jetkern": (our_update(model, options), model.state_dict)}
    result: dict[str, Any] = {
        "machine": describe(options.threads, clock),
        "command": command(),
        "jets of an update": options.batch,
        "curves": {},
    }
    if options.peer:
        sys.path.append(options.peer)
        peer = omnilearned(model)
        result["outputs"] = difference(model, peer, jets.select(slice(0, 64)))
        ours[PEER] = (peer_update(peer, options), lambda: convert(peer.state_dict()))
    stream = Stream(train, batch_size=options.batch, seed=options.seed, fields=())
    batches = islice(iter(stream), options.updates)
    spent = dict.fromkeys(ours, 0.0)
    with repeating():  # as ``Trainer`` does; the peer gains by it, too
        for done, block in blocks(batches, options.block):
            for name, (update, weights) in ours.items():
                before = clock()
                for number, batch in enumerate(block, done - len(block)):
                    update(batch, number)
                spent[name] += clock() - before
                judge.load_state_dict(weights())
                point = [done, spent[name], area(judge, jets)]
                result["curves"].setdefault(name, []).append(point)
            write_results(options.out, result)
    return result


def blocks(batches: Iterator[Jets], size: int) -> Iterator[tuple[int, list[Jets]]]:
    """Turns of so many batches, with how many have been taken after each."""
    done = 0
    with tqdm(unit=" updates", disable=None) as bar:
        while block := list(islice(batches, size)):
            done += len(block)
            yield done, block
            bar.update(len(block))


def our_update(model: PET, options: argparse.Namespace) -> Update:
    """As ``Trainer`` makes it."""
    weights = FlatParameters([{"params": list(model.parameters())}])
    step = Step(
        Objective(model),
        weights,
        Lion(weights.groups, weight_decay=DECAY),
        World(0, 1, torch.device("cpu")),
        lr=lambda number: rate(number, options),
        clip=CLIP,
        per_pass=options.batch,
    )

    return step


def peer_update(network: Any, options: argparse.Namespace) -> Update:
    """The same update of omnilearned's network; padding counts as its work."""
    optimizer = Lion(network.parameters(), weight_decay=DECAY)
    loss = omnilearned_loss(network, ("classifier",))

    def update(jets: Jets, number: int) -> None:
        optimizer.zero_grad()
        loss(padded_jets(jets)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        set_lr(optimizer, rate(number, options))
        optimizer.step()

    return update


def rate(number: int, options: argparse.Namespace) -> float:
    """Learning rate of an update."""
    warmup = options.updates // 10
    return lr_at(number, peak=options.lr, warmup_steps=warmup, total_steps=options.updates)


def difference(model: PET, network: Any, jets: Jets) -> float:
    """Largest difference of the two networks' logits; with gradients, since without them PyTorch's
    attention takes a fast path that differs by 1e-3 in float64, too."""
    particles, _, _, label = padded_jets(jets)
    theirs = network.eval()(particles, label)["y_pred"]
    ours = model.eval().classify(jets)
    model.train()
    network.train()
    return float((theirs - ours).detach().abs().max())


@torch.no_grad()
def area(model: PET, jets: Jets) -> float:
    """AUC of the second class against the first."""
    assert jets.label is not None
    parts = [jets.select(slice(at, at + 1000)) for at in range(0, len(jets), 1000)]
    logits: Tensor = torch.cat([model.classify(part) for part in parts])
    return area_under_roc((logits[:, 1] - logits[:, 0]).numpy(), jets.label.numpy())


def shown(result: dict[str, Any]) -> str:
    """The curves as a table, to paste."""
    unit = "CPU s" if result["machine"]["threads"] == 1 else "s"
    names = list(result["curves"])
    rows = [["updates", *(f"{name}, {what}" for name in names for what in (unit, "AUC"))]]
    for points in zip(*result["curves"].values(), strict=True):
        cells = [
            cell for _, seconds, value in points for cell in (f"{seconds:.1f}", f"{value:.4f}")
        ]
        rows.append([str(points[0][0]), *cells])
    lines = [table(rows, markdown=True)]
    if PEER in names:
        ratio = result["curves"][PEER][-1][1] / result["curves"]["jetkern"][-1][1]
        lines.append(f"time for the same updates: {ratio:.1f}x; outputs {result['outputs']:.1g}")
    return "\n\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """1 - AUC over time, both axes logarithmic."""
    with matplotlib.rc_context(STYLE):
        figure = sheet(1, 1, title="error of the same updates against time")
        axes = figure.axes[0]
        ends = []
        for number, (name, points) in enumerate(result["curves"].items()):
            _, seconds, areas = zip(*points, strict=True)
            errors = [1 - area for area in areas]
            axes.plot(seconds, errors, color=f"C{number}")
            ends.append((name, seconds[-1], errors[-1], f"C{number}"))
        threads = result["machine"]["threads"]
        axes.set(xscale="log", yscale="log", ylabel="1 - AUC")
        axes.set_xlabel("CPU seconds" if threads == 1 else "seconds")
        label_curves(axes, ends, column=1.02)
        save(figure, path)


if __name__ == "__main__":
    main()
