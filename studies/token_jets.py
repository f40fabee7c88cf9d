"""Jets from tokens: what tokenisers keep of jets, what decoders draw, what other jets teach them.

python studies/token_jets.py --data shards/toptag --other shards/jetclass --out runs/token-jets

Three tables, means and standard deviations over seeds. Tokenisers of equally many codes: grids,
k-means (a code for a particle whatever its jet) and VQ-VAEs. Jets drawn by decoders of the latter
two beside the real ones, beside these made of their own tokens, and beside jets whose tokens were
dealt anew; the floor is one half of the real jets from the other. Decoders of a few jets of one
class, from scratch and pre-trained on unlabelled jets of another simulation (as from Aspen Open
Jets to JetClass, arXiv 2412.10504). It continues where it was stopped. Needs the extra
"simulation", for N-subjettiness.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from jetkern.data import Shards, select_classes
from jetkern.evaluation.generate import GenerateSettings, first_jets, generate
from jetkern.evaluation.two_sample import two_sample_auc
from jetkern.io import made_once, read_json, write_atomically
from jetkern.jets import Jets
from jetkern.metrics.generation import wasserstein
from jetkern.metrics.substructure import observables
from jetkern.recipes import finetune, pretrain
from jetkern.tables import mean_and_spread, table
from jetkern.training.config import OptimSettings, RunSettings, ValidationSettings
from jetkern.training.defaults import finetune_defaults, pretrain_defaults
from jetkern.training.distributed import join_world
from jetkern.training.tokenize import TokenizeSettings, load_tokenizer, tokenize
from jetkern.training.trainer import SIGNAL

OBSERVABLES = ("mass", "pT", "multiplicity", "tau21", "tau32")
KINDS = ("bins", "kmeans", "vqvae")
DRAWN = ("kmeans", "vqvae")
STARTS = ("from scratch", "pre-trained")


def massless(jets: Jets) -> Jets:
    """The kinematics alone, as decoders draw them: without energies of their own."""
    particles = jets.particles.clone()
    particles[:, 3] = particles[:, 2] + particles[:, 0].cosh().log()
    return Jets(particles=particles, offsets=jets.offsets)


def distances(real: Jets, made: Jets) -> dict[str, float]:
    """W1 of each observable."""
    a, b = observables(real), observables(made)
    return {name: wasserstein(a[name].values, b[name].values) for name in OBSERVABLES}


class Study:
    """All trainings in one folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.judged = options.out / "judged"
        self.judged.mkdir(parents=True, exist_ok=True)

    def jets(self, classes: Iterable[str]) -> Jets:
        """The real jets of some classes, of the test shards, for as many drawn ones twice."""
        shards = select_classes(Shards(self.options.data / "test"), tuple(classes))
        return massless(first_jets(shards, min(2 * self.options.drawn, shards.num_jets)))

    def tokenizer(self, kind: str, seed: int, data: Path, classes: tuple[str, ...]) -> Path:
        """A fitted one."""
        out: Path = self.out / "tokens" / f"{kind}-{data.name}-{'-'.join(classes)}-{seed}"
        settings = TokenizeSettings(
            kind=kind,
            data=data,
            out=out,
            codes=self.options.codes,
            features=("delta_eta", "delta_phi", "ln_pt"),
            seed=seed,
            batch_size=128 if kind == "vqvae" else 1024,
            steps=self.options.vq_steps if kind == "vqvae" else None,
            classes=classes,
            shape=(64, 2, 4, 16),
        )
        with join_world("cpu") as world:
            if not (out / "DONE").exists() and tokenize(settings, world) is None:
                raise SystemExit(SIGNAL)
        return out

    def settings(self, steps: int, lr: float, **told: Any) -> dict[str, Any]:
        """Those of every training: AdamW with a cosine, the best of ten validations."""
        optim = OptimSettings(
            optimizer="adamw",
            lr=lr,
            weight_decay=0.01,
            betas=(0.9, 0.999),
            clip=5.0,
            batch_size=self.options.batch_size,
            steps=steps,
            warmup_steps=steps // 20,
            precision="bf16",
        )
        validation = ValidationSettings(val_every=max(1, steps // 10), val_jets=1000)
        return {
            "optim": optim,
            "validation": validation,
            "run": RunSettings(threads=1, save_every=10**6),
            **told,
        }

    def trained(self, name: str, tokens: Path, steps: int, **told: Any) -> Path:
        """The run of a decoder that begins with nothing."""
        out: Path = self.out / "decoders" / name
        told |= {"out": out, "tokenizer": tokens}
        defaults = pretrain_defaults(self.options.preset, "next-token")
        settings = self.settings(steps, self.options.lr, **told)
        finished(pretrain(replace(defaults, **settings)))
        return out

    def drawn(self, run: Path, seed: int) -> Jets:
        """Jets of a decoder."""
        out = self.out / "drawn" / run.name
        asked = GenerateSettings(source=run, out=out, num_jets=self.options.drawn, seed=seed)
        with join_world("cpu") as world:
            shards = generate(asked, world)
        assert shards is not None
        return massless(first_jets(shards))

    def tokenizers(self, seed: int) -> dict[str, dict[str, float]]:
        """By kind: how well masses are kept, and how the codes are used."""
        found = {}
        for kind in KINDS:
            folder = self.tokenizer(kind, seed, self.options.data, self.options.classes)
            report = read_json(folder / "report.json", error=ValueError).content
            found[kind] = {
                "mass, %": 100 * report["observables"]["mass"]["width"],
                "bias, %": 100 * report["observables"]["mass"]["bias"],
                "pT, %": 100 * report["observables"]["pT"]["width"],
                "tau21": report["observables"]["tau21"]["width"],
                "used, %": 100 * (1 - report["dead"]),
                "perplexity": report["perplexity"],
            }
        return found

    def draws(self, seed: int) -> dict[str, dict[str, float]]:
        """By sample: distances from real jets, and AUC of a classifier that tells them apart."""
        real = self.jets(self.options.classes)
        first, second = (real.select(slice(i, None, 2)) for i in (0, 1))
        found = {"floor": made_once(self.judged / "floor.json", lambda: distances(first, second))}
        for kind in self.options.kinds:
            folder = self.tokenizer(kind, seed, self.options.data, self.options.classes)
            tokenizer = load_tokenizer(folder)
            tokens = tokenizer.tokens(first)
            order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
            told = {"data": self.options.data, "classes": self.options.classes, "seed": seed}
            run = self.trained(f"{kind}-{seed}", folder, self.options.steps, **told)
            own = massless(tokenizer.reconstructed(second, tokenizer.tokens(second)))
            samples = {
                f"{kind}: real, by its tokens": own,
                f"{kind}: tokens dealt anew": massless(
                    tokenizer.reconstructed(first, tokens[order])
                ),
                f"{kind}: drawn": self.drawn(run, seed),
            }
            for name, jets in samples.items():
                file = self.judged / f"{name.replace(' ', '-').replace(':', '')}-{seed}.json"

                def judge(jets: Jets = jets, own: Jets = own) -> dict[str, float]:
                    result = distances(first, jets)
                    for key, of in (("AUC, real", first), ("AUC, tokens", own)):
                        if jets is not own or of is not own:
                            result[key] = two_sample_auc(
                                of, jets, steps=self.options.two_sample, seed=seed, bootstrap=2
                            ).value
                    if jets is not own:
                        result |= {f"{k}, tokens": v for k, v in distances(own, jets).items()}
                    return result

                found[name] = made_once(file, judge)
        return found

    def transfers(self, seed: int) -> dict[str, dict[str, float]]:
        """By number of jets and start: distances from real jets of the one class."""
        target, other = self.options.classes[-1:], self.options.other_classes
        tokens = self.tokenizer("kmeans", 0, self.options.other, other)
        real = self.jets(target)
        first, second = (real.select(slice(i, None, 2)) for i in (0, 1))
        tokenizer = load_tokenizer(tokens)
        own = massless(tokenizer.reconstructed(second, tokenizer.tokens(second)))
        found = {
            "floor": made_once(self.judged / "floor-of-one.json", lambda: distances(first, second)),
            "real, by its tokens": made_once(
                self.judged / "tokens-of-one.json", lambda: distances(first, own)
            ),
        }
        started = seed % self.options.bodies if self.options.bodies else seed
        told: dict[str, Any] = {"data": self.options.other, "classes": other, "seed": started}
        body = self.trained(f"other-{started}", tokens, self.options.steps, **told)
        told |= {"data": self.options.data, "classes": target, "seed": seed}
        for size in self.options.sizes:
            told["num_jets"] = size
            runs = [self.trained(f"scratch-{size}-{seed}", tokens, self.options.tune, **told)]
            runs.append(self.out / "decoders" / f"tuned-{size}-{seed}")
            lr = self.options.tune_lr or self.options.lr
            changes = self.settings(self.options.tune, lr, **told, source=body, out=runs[1])
            finished(finetune("next-token", replace(finetune_defaults(), **changes)))
            for start, run in zip(STARTS, runs, strict=True):
                file = self.judged / f"{run.name}.json"

                def judge(run: Path = run) -> dict[str, float]:
                    jets = self.drawn(run, seed)
                    by_tokens = {f"{k}, tokens": v for k, v in distances(own, jets).items()}
                    return distances(first, jets) | by_tokens

                found[f"{size:,} jets, {start}"] = made_once(file, judge)
        return found

    def rows(self, part: Callable[[int], dict[str, dict[str, float]]]) -> str:
        """A Markdown table of a part."""
        found = [part(seed) for seed in self.options.seeds]
        columns = list(dict.fromkeys(key for row in found[0].values() for key in row))
        lines: list[list[object]] = [["", *columns]]
        for name in found[0]:
            values = {c: [f[name][c] for f in found if c in f[name]] for c in columns}
            lines.append([name, *map(mean_and_spread, values.values())])
        return table(lines, "l" + "r" * len(columns), markdown=True)


def finished(result: dict[str, Any]) -> None:
    """Raises: SystemExit: if a signal stopped the training."""
    if result["reason"] == SIGNAL:
        raise SystemExit(SIGNAL)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="shards of two classes: train, val and test")
    add("--classes", nargs=2, default=["QCD", "top"], help="their names, the second to learn last")
    add("--other", type=Path, required=True, help="shards to pre-train on")
    add("--other-classes", nargs="+", default=["QCD"], help="of these")
    add("--out", type=Path, required=True)
    parts = ("tokenizers", "draws", "transfers")
    add("--parts", nargs="+", default=parts, choices=parts)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--kinds", nargs="+", default=DRAWN, choices=DRAWN, help="tokens of decoders that draw")
    add("--bodies", type=int, help="pre-trained decoders that seeds share; default: one for each")
    add("--preset", default="micro")
    add("--codes", type=int, default=512)
    add("--vq-steps", type=int, default=1500, help="updates of a VQ-VAE, of 128 jets")
    add("--batch-size", type=int, default=64, help="jets of an update of a decoder")
    add("--steps", type=int, default=3000, help="updates of a decoder")
    add("--lr", type=float, default=1e-3, help="their highest rate")
    add("--tune", type=int, default=500, help="updates of a decoder of few jets")
    add("--tune-lr", type=float, help="highest rate of one that was pre-trained; default: --lr")
    add("--sizes", type=int, nargs="+", default=[100, 1000, 10_000], help="numbers of few jets")
    add("--drawn", type=int, default=4000, help="jets drawn, and real ones beside them")
    add("--two-sample", type=int, default=300, help="updates of a classifier of two samples")
    options = parser.parse_args()
    options.classes, options.other_classes = map(tuple, (options.classes, options.other_classes))
    torch.set_num_threads(1)
    study = Study(options)
    text = "\n\n".join(study.rows(getattr(study, part)) for part in options.parts)
    write_atomically(options.out / "table.md", f"{text}\n".encode())
    print(text)


if __name__ == "__main__":
    main()
