"""Figures of merit of trained models."""

from jetkern.evaluation.classify import (
    check_classes,
    classification_report,
    load_classifier,
    predict,
    report_table,
)

__all__ = ["check_classes", "classification_report", "load_classifier", "predict", "report_table"]
