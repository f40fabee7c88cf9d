"""Weights and conventions of other packages."""
