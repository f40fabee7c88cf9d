#!/usr/bin/env python
"""Evaluates trained models: `train/evaluate.py --help`, the same as `jetkern evaluate`."""

from jetkern.cli.evaluate import main
from jetkern.training.config import command

if __name__ == "__main__":
    command(main)
