"""Targets that one linear layer predicts: numbers, identities, tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jetkern import ops
from jetkern.jets import IDENTITIES
from jetkern.model.config import PETConfig
from jetkern.model.targets.target import Hidden, Target, known_mean


class Regression(Target, nn.Linear):
    """Absolute error, mean over a particle's features (MPMv2, arXiv 2409.12589)."""

    def __init__(self, config: PETConfig, width: int) -> None:
        nn.Linear.__init__(self, width, len(config.target_features) or 4)

    def losses(self, hidden: Hidden) -> tuple[Tensor]:
        values, known = hidden.values
        return (known_mean((self(hidden.context()) - values).abs(), known),)

    def trivial(self, hidden: Hidden) -> tuple[float]:
        """Of the median of each feature."""
        values, known = hidden.values
        columns = zip(values.T, known.T, strict=True)
        medians = [v[k].median() if k.any() else v.new_zeros(()) for v, k in columns]
        return (float(known_mean((values - torch.stack(medians)).abs(), known).mean()),)

    def sample(self, hidden: Hidden) -> Tensor:
        """(M, F) the predicted features."""
        return self(hidden.context())


class Identity(Target):
    """Cross-entropy of the identities; particles of unknown identity have no loss."""

    def __init__(self, config: PETConfig, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, IDENTITIES)

    def losses(self, hidden: Hidden) -> tuple[Tensor]:
        pid = _identities(hidden)
        logits = self.out(hidden.context())
        smoothing = hidden.choices.smoothing
        each = cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)),
            pid,
            reduction="none",
            label_smoothing=smoothing,
        )
        return (each * (pid > 0),)

    def trivial(self, hidden: Hidden) -> tuple[float]:
        """Of how often each comes."""
        pid = _identities(hidden)
        share = (pid > 0).double().mean()
        seen = torch.bincount(pid[pid > 0], minlength=IDENTITIES)
        return (float(share) * _unigram(seen, hidden.choices.smoothing),)

    def sample(self, hidden: Hidden) -> Tensor:
        """(M,) int64 the most likely known identity."""
        return self.out(hidden.context())[:, 1:].argmax(1) + 1


class Tokens(Target):
    """Cross-entropy of the codes that a tokeniser has for the particles of the complete jet."""

    def __init__(self, config: PETConfig, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, config.codes)

    def losses(self, hidden: Hidden) -> tuple[Tensor]:
        rows, tokens = hidden.context(), _tokens(hidden)
        loss = ops.linear_cross_entropy(rows, self.out.weight, self.out.bias, tokens)
        smoothing = hidden.choices.smoothing
        if smoothing:
            # Of the other codes only the mean logit is needed, which is linear in the row.
            own = (rows * self.out.weight[tokens]).sum(1) + self.out.bias[tokens]
            mean = rows @ self.out.weight.mean(0) + self.out.bias.mean()
            loss = loss + smoothing * (own - mean)
        return (loss,)

    def trivial(self, hidden: Hidden) -> tuple[float]:
        """Of how often each code comes."""
        seen = torch.bincount(_tokens(hidden), minlength=self.out.out_features)
        return (_unigram(seen, hidden.choices.smoothing),)

    def sample(self, hidden: Hidden) -> Tensor:
        """(M,) int64 the most likely code."""
        return self.out(hidden.context()).argmax(1)


def _identities(hidden: Hidden) -> Tensor:
    if hidden.jets.pid is None:
        raise ValueError("the identity of hidden particles is asked for, but the jets have none")
    return hidden.jets.pid


def _tokens(hidden: Hidden) -> Tensor:
    assert hidden.tokenizer is not None
    return hidden.tokenizer.tokens_of(hidden.whole, hidden.jets, hidden.places)


def _unigram(seen: Tensor, smoothing: float) -> float:
    """Cross-entropy in nats of the best shares for all particles, of smoothed labels."""
    share = seen.double() / seen.sum().clamp(min=1)
    share = (1 - smoothing) * share + smoothing / len(seen)
    return float(-torch.special.xlogy(share, share).sum())
