"""What the paper claims, and what the runs of a study say to it.

A claim is a conjunction of comparisons. A comparison takes the differences of ln(error) between two
kinds of runs, paired by their seeds, and asks Student's test whether their mean is above a margin,
and whether it is below. A claim is supported if every comparison is (the largest of its p-values:
intersection-union test), refuted if any is the other way (the smallest one times their number,
Bonferroni). Holm's correction is over both questions of all claims of the study together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jetkern.study.collect import GENERATOR, Row, cells
from jetkern.study.plan import Study
from jetkern.study.statistics import Test, holm, paired

Cells = dict[tuple, list[Row]]
ALPHA = 0.05
MARGIN = math.log(1.1)  # "little": less than 10 % of the error
C, G, M = "classifier", "generator", "mpm"
CG, CM, GM, CGM = f"{C}+{G}", f"{C}+{M}", f"{G}+{M}", f"{C}+{G}+{M}"
SCRATCH = "scratch"


@dataclass(frozen=True)
class Comparison:
    """``better`` has the smaller error than ``worse``, by more than ``margin`` in the logarithm.

    Attributes:
        task: where.
        labels: "fewest", "most" or "all" numbers of jets of the task.
        less: the claim is that it is better by less than the margin, or not at all.
    """

    better: str
    worse: str
    task: str = "top"
    labels: str = "all"
    margin: float = 0.0
    less: bool = False

    def __str__(self) -> str:
        by = f" by more than {math.expm1(self.margin):.0%}" if self.margin else ""
        return f"{self.better} {'not ' * self.less}better than {self.worse}{by}"


@dataclass(frozen=True)
class Claim:
    """One statement of the paper, and the comparisons that it stands for here."""

    name: str
    text: str
    comparisons: tuple[Comparison, ...]
    left_out: tuple[Comparison, ...] = ()

    def asked_by(self, study: Study) -> Claim:
        """The claim without comparisons of objectives that the study does not tune on their task.

        All of them stay if it tunes none, since it then says nothing to the claim.
        """
        asked = {
            t.task: {SCRATCH, *(t.objectives or study.pretraining.objectives)} for t in study.tasks
        }
        planned = [{c.better, c.worse} <= asked.get(c.task, set()) for c in self.comparisons]
        kept = tuple(c for c, there in zip(self.comparisons, planned, strict=True) if there)
        left = tuple(c for c, there in zip(self.comparisons, planned, strict=True) if not there)
        return replace(self, comparisons=kept, left_out=left) if kept else self


@dataclass(frozen=True)
class Verdict:
    """What the study says to a claim; p-values are corrected for the number of claims."""

    claim: Claim
    word: str
    p_for: float
    p_against: float
    tests: tuple[Test, ...]
    why: str


CLAIMS = (
    Claim(
        "pre-training helps",
        "Pre-training with labels, alone or with others, beats training from scratch.",
        tuple(Comparison(o, SCRATCH) for o in (C, CG, CM, CGM)),
    ),
    Claim(
        "classifier, many labels",
        "Pure classifier pre-training is best where labels and capacity are plentiful (abstract).",
        tuple(Comparison(C, o, labels="most") for o in (G, M, CG, CM, GM, CGM)),
    ),
    Claim(
        "C+M, few labels",
        "Classifier with masked particles is best where labels are few (abstract).",
        tuple(Comparison(CM, o, labels="fewest") for o in (C, G, M, CG, GM, CGM)),
    ),
    Claim(
        "generator for classification",
        "Flow matching alone gives little benefit for classification: under 10 % (abstract).",
        (Comparison(G, SCRATCH, margin=MARGIN, less=True),),
    ),
    Claim(
        "generation needs flow matching, yes",
        "With flow matching in the pre-training, generation gains (abstract).",
        tuple(Comparison(o, SCRATCH, "jetnet") for o in (G, CG, GM, CGM)),
    ),
    Claim(
        "generation needs flow matching, no",
        "Without flow matching it gains little: under 10 % (abstract).",
        tuple(Comparison(o, SCRATCH, "jetnet", margin=MARGIN, less=True) for o in (C, M, CM)),
    ),
    Claim(
        "both tasks",
        "Pre-trained on both, a model transfers to classification and generation (abstract).",
        tuple(Comparison(o, SCRATCH, t) for o in (CG, CGM) for t in ("top", "jetnet")),
    ),
)


def log_error(row: Row, metric: str) -> float:
    """ln of a run's error, the smaller the better.

    Of a rejection the background efficiency with half a jet added, (kept + 1/2) / (all + 1): that
    is finite where no background jet is left.
    """
    value = row.values.get(metric, math.nan)
    if metric in row.kept:
        kept, total = row.kept[metric]
        return math.log((kept + 0.5) / (total + 1))
    error = 1 - value if metric in ("auc", "accuracy") else value
    return math.log(error) if error > 0 else math.nan


def verdicts(
    rows: Sequence[Row], metric: str = "r30", claims: Sequence[Claim] = CLAIMS
) -> list[Verdict]:
    """The study's verdict on each claim.

    Fine-tunings from the most pre-training jets with the largest model are compared.

    Args:
        rows: from ``collect``.
        metric: of top tagging; for JetNet it is the mean logarithm of the distances.
        claims: to judge.
    """
    groups = cells(rows)
    tests = {
        claim.name: [paired(differences(c, groups, metric), c.margin) for c in claim.comparisons]
        for claim in claims
    }
    raw: dict[str, float] = {}
    for claim in claims:
        for_, against = [], []
        for comparison, test in zip(claim.comparisons, tests[claim.name], strict=True):
            pair = (test.p_below, test.p_above) if comparison.less else (test.p_above, test.p_below)
            for_.append(pair[0])
            against.append(pair[1])
        there = [p for p in against if not math.isnan(p)]
        whole = not any(map(math.isnan, for_))
        raw[f"{claim.name}: for"] = max(for_) if whole else math.nan
        raw[f"{claim.name}: against"] = min(1.0, min(there) * len(for_)) if there else math.nan
    corrected = holm(raw)
    found = []
    for claim in claims:
        p_for, p_against = (corrected[f"{claim.name}: {side}"] for side in ("for", "against"))
        word = "undecided"
        if p_for < ALPHA:
            word = "supported"
        elif p_against < ALPHA:
            word = "refuted"
        missing = sum(test.n < 2 for test in tests[claim.name])
        why = ""
        if not any(test.n for test in tests[claim.name]):
            why = "not in this study"
        elif missing:
            why = f"{missing} of {len(claim.comparisons)} comparisons have fewer than 2 seeds"
        elif claim.left_out:
            why = f"without {', '.join(dict.fromkeys(c.better for c in claim.left_out))}"
        found.append(Verdict(claim, word, p_for, p_against, tuple(tests[claim.name]), why))
    return found


def differences(comparison: Comparison, groups: Cells, metric: str) -> list[float]:
    """ln(error of ``worse``) - ln(error of ``better``) of each seed, over the numbers of jets.

    Of runs with the same jets and seeds; their mean over the numbers of jets, since what one seed
    does with more jets is no further seed.
    """
    better = _side(comparison.better, comparison, groups, metric)
    worse = _side(comparison.worse, comparison, groups, metric)
    from_nothing = comparison.worse == SCRATCH
    of_seed: dict[tuple[int, int], list[float]] = {}
    for (jets, seed, start), value in better.items():
        other = worse.get((jets, seed, 0 if from_nothing else start))
        if other is not None:
            of_seed.setdefault((seed, start), []).append(other - value)
    return [sum(values) / len(values) for values in of_seed.values()]


def _side(
    objective: str, comparison: Comparison, cells_: Cells, metric: str
) -> dict[tuple[int, int, int], float]:
    way = SCRATCH if objective == SCRATCH else "finetuned"
    groups = {
        key: group
        for key, group in cells_.items()
        if key[:2] == (comparison.task, way) and key[3] == objective
    }
    if not groups:
        return {}
    sizes = ["micro", "small", "medium", "large"]
    size = max((key[2] for key in groups), key=sizes.index)
    pretrain_jets = max(key[4] for key in groups)
    everywhere = {key[5] for key in cells_ if key[0] == comparison.task}
    chosen = {"fewest": {min(everywhere)}, "most": {max(everywhere)}, "all": everywhere}
    found = {}
    for key, group in groups.items():
        if key[2] == size and key[4] == pretrain_jets and key[5] in chosen[comparison.labels]:
            for row in group:
                names = GENERATOR if comparison.task == "jetnet" else (metric,)
                values = [log_error(row, name) for name in names]
                mean = sum(values) / len(values)
                found[row.run.jets, row.run.seed, row.run.pretrain_seed] = mean
    return found
