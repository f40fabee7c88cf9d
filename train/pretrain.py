#!/usr/bin/env python
"""Pre-trains a jet foundation model: `train/pretrain.py --help`, the same as `jetkern pretrain`."""

from jetkern.cli.pretrain import main
from jetkern.training.config import command

if __name__ == "__main__":
    command(main)
