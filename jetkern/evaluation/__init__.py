"""Figures of merit of trained models."""

from jetkern.evaluation.classify import (
    Report,
    check_classes,
    class_outputs,
    classification_report,
    joined,
    load_classifier,
    predict,
    report_table,
)

__all__ = [
    "Report",
    "check_classes",
    "class_outputs",
    "classification_report",
    "joined",
    "load_classifier",
    "predict",
    "report_table",
]
