"""A loss of your own: predict ln(1 + n) of a jet's particles from what the masks left of them.

jetkern pretrain --plugin examples/new_loss.py --objective classifier+multiplicity --data ...
"""

from jetkern.model import register_head
from jetkern.model.heads import Classifier
from jetkern.objectives import Loss, register, views


@register_head("multiplicity")
def head(config):
    """A classifier's head with one output."""
    return Classifier(config, outputs=1)


@register
class Multiplicity(Loss):
    """Squared error of ln(1 + n), mean over jets, a tenth of it in the sum."""

    part = "multiplicity"
    view = staticmethod(views.masked)
    scale = 0.1

    def sum(self, output, view):
        """Output (B, 1) of the head, which has read the tokens of the masked jets."""
        return (output[:, 0] - view.whole.counts.log1p()).square().sum()
