#!/usr/bin/env python
"""Fine-tunes a model: `train/finetune.py --help`, the same as `jetkern finetune`."""

from jetkern.cli.finetune import main
from jetkern.training.config import command

if __name__ == "__main__":
    command(main)
