"""How good a model is: classification figures of merit with their uncertainties."""

from jetkern.metrics.classification import (
    BinaryReport,
    Estimate,
    MulticlassReport,
    Rejection,
    RocCurve,
    area_under_roc,
    binary_report,
    multiclass_report,
    rejection,
    roc_curve,
)

__all__ = [
    "BinaryReport",
    "Estimate",
    "MulticlassReport",
    "Rejection",
    "RocCurve",
    "area_under_roc",
    "binary_report",
    "multiclass_report",
    "rejection",
    "roc_curve",
]
