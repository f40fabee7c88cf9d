"""Figures of merit of trained models."""

from jetkern.evaluation.classify import (
    classification_report,
    load_classifier,
    predict,
    report_table,
)

__all__ = ["classification_report", "load_classifier", "predict", "report_table"]
