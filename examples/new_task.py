"""A task of your own: tag one class of jets against all others, in shards with any classes.

jetkern finetune tag-Hbb --plugin examples/new_task.py --preset micro --data ... --out runs/hbb
jetkern evaluate runs/hbb --plugin examples/new_task.py --data ... --out results/hbb
"""

from torch.nn.functional import binary_cross_entropy_with_logits

from jetkern.objectives import Objective
from jetkern.objectives.losses import Classification
from jetkern.tasks import Classify, register


class OneAgainstAll(Classification):
    """Binary cross-entropy of the score of class 1."""

    def sum(self, output, view):
        """Output (B, classes) of the classifier."""
        score = output[:, 1] - output.logsumexp(1)
        target = (view.whole.label == 1).to(score.dtype)
        return binary_cross_entropy_with_logits(score, target, reduction="sum")


@register
class TagHbb(Classify):
    """Trained one against all, judged as any classifier."""

    name = "tag-Hbb"

    def objective(self, model, settings):
        """The loss above in place of the cross-entropy of all classes."""
        return Objective(model, settings.seed, losses=[OneAgainstAll()])
