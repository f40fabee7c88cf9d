"""What the demos share: a stage is a command that a user would type, printed before it runs."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jetkern.cli.parser import Parser, positive, processes, threads
from jetkern.io import user_path

ROOT = Path(__file__).resolve().parents[1]


class Demo:
    """A demo's options, its stages, and how long each took.

    Args:
        file: of the demo.
        description: of its ``--help``.
        numbers: further options, each a number: name, default and help.
    """

    def __init__(
        self, file: str, description: str | None, numbers: dict[str, tuple[int, str]]
    ) -> None:
        self.name = Path(file).name
        parser = Parser("demo", description)
        parser.prog, add = self.name, parser.add_argument
        add("--out", type=user_path, default=Path("demo"), metavar="DIR", help="folder")
        what = "processes; default: cores"
        add("--jobs", type=threads, default=processes(), metavar="N", help=what)
        pretraining = {
            "jetclass": (20_000, "jets to pre-train with"),
            "steps": (1200, "updates of the pre-training"),
        }
        for name, (default, what) in (pretraining | numbers).items():
            add(f"--{name}", type=positive, default=default, metavar="N", help=what)
        self.options = parser.parse_args()
        self.folder = self.options.out.resolve()
        self.out = shlex.quote(str(self.folder))
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, command: str) -> None:
        """Runs ``python command`` in the project's folder; ends the demo if it fails."""
        print(f"\n[{name}] python {command}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT).returncode
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        if code:
            sys.exit(f"{self.name}: the stage '{name}' failed; the same command continues there")
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def shards(self, kind: str, jets_per_class: int, splits: str, *, at_once: bool = True) -> str:
        """Simulates jets and converts them; returns their folder of shards.

        Args:
            kind: of jets, with further flags.
            splits: of the simulation or, unless ``at_once``, of the conversion.
        """
        name, jobs = kind.split()[0], f"--jobs {self.options.jobs}"
        first, second = (f" --splits {splits}", "")[:: 1 if at_once else -1]
        jets, shards = f"{self.out}/jets/{name}", f"{self.out}/shards/{name}"
        self.stage(
            "simulate",
            f"data_tools/simulate.py {kind} --out {jets} --jets-per-class {jets_per_class}{first} "
            f"{jobs} --figure",
        )
        self.stage("convert", f"data_tools/convert.py {jets} --out {shards}{second} {jobs}")
        return shards

    def pretrained(self) -> str:
        """Pre-trains micro with all objectives on JetClass-like jets; returns its run."""
        jets, steps = self.options.jetclass, self.options.steps
        data = self.shards("jetclass --no-mpi", jets // 10, "train=0.9,val=0.1")
        run = f"{self.out}/runs/pretrained"
        self.stage(
            "pre-train",
            f"train/pretrain.py --preset micro --objective pretrain --data {data} --out {run} "
            f"--batch-size 128 --steps {steps} --warmup-steps {steps // 15} --optimizer lion "
            f"--lr 2e-3 --val-every {max(1, steps // 5)} --log-every {max(1, steps // 30)}",
        )
        return run

    def finetuned(self, task: str, start: str, data: str, run: str, more: str) -> str:
        """Fine-tunes from the pre-training or from scratch; returns the run ``run``."""
        source = f"--from {self.out}/runs/pretrained" if start != "scratch" else "--preset micro"
        steps, run = self.options.tuning, f"{self.out}/runs/{run}"
        every = max(1, steps // 10)
        self.stage(
            "fine-tune",
            f"train/finetune.py {task} {source} --data {data} --out {run} --steps {steps} "
            f"--warmup-steps {steps // 10} --val-every {every} --log-every {every} {more}",
        )
        return run

    def close(self, results: str) -> None:
        """Prints the table again, the time of each stage, and where the pictures are."""
        folder = self.folder / results
        (folder / "seconds.json").write_text(json.dumps(self.seconds, indent=2))
        times = ", ".join(f"{name} {value:.0f} s" for name, value in self.seconds.items())
        print(f"\n{(folder / 'table.md').read_text()}")
        print(f"{sum(self.seconds.values()) / 60:.1f} minutes: {times}")
        for picture in sorted(self.folder.glob("**/*.png")):
            print(f"picture: {picture}")


def run(file: str, main: Callable[[], None]) -> None:
    """Runs a demo; Ctrl-C ends it with one line."""
    try:
        main()
    except KeyboardInterrupt:
        print(f"{Path(file).name}: stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
