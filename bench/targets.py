"""Training steps of each target of masked particle modelling, for ``bench.step --targets``.

The scale is fitted to the batch and codes are particles of it: costs do not depend on what codes
are good for.
"""

from __future__ import annotations

import torch

from jetkern import PET, Jets
from jetkern.model.presets import model_preset
from jetkern.objectives import Objective
from jetkern.objectives.targets import parse_targets, target_losses
from jetkern.tokenizers import KINEMATICS, TRACKS, QuantileNormal, Tokenizer

CASES = {  # targets and codes
    "regression": ("regression", 0),
    "regression+identity": ("regression+identity:0.3", 0),
    "tokens, 512": ("tokens", 512),
    "tokens, 16384": ("tokens", 16384),
    "cfm": ("cfm", 0),
    "cnf": ("cnf", 0),
    "ssfm": ("ssfm", 0),
}
FEATURES = (*KINEMATICS[:3], *TRACKS)


def tokenizer_of(jets: Jets, codes: int) -> Tokenizer:
    """A scale of these jets, and codes near their particles."""
    blank = Tokenizer.blank(FEATURES, 0)
    values, known = blank.values(jets)
    columns = [v[k].numpy() for v, k in zip(values.T, known.T, strict=True)]
    scale = QuantileNormal.fit(columns)
    points = Tokenizer(FEATURES, scale, torch.zeros(0, len(FEATURES))).scaled(jets)[0]
    rows = torch.arange(codes) % len(points)
    noise = torch.randn(codes, len(FEATURES), generator=torch.Generator().manual_seed(0))
    return Tokenizer(FEATURES, scale, points[rows] + 0.1 * noise)


def learner(size: str, case: str, jets: Jets, precision: str = "ieee") -> Objective:
    """The objective of one of ``CASES`` with targets on a scale of these jets, in training mode."""
    text, codes = CASES[case]
    weights = parse_targets(text)
    torch.manual_seed(0)
    tokenizer = tokenizer_of(jets, codes)
    more = {"targets": tuple(weights), "target_features": FEATURES, "codes": codes}
    model = PET(model_preset(size, ["mpm"], **more), precision=precision)
    assert model.mpm is not None and model.mpm.tokenizer is not None  # noqa: PT018
    model.mpm.tokenizer.load_state_dict(tokenizer.state_dict())
    return Objective(model, losses=target_losses(model.config, weights)).train()
