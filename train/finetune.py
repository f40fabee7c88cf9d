#!/usr/bin/env python
"""`train/finetune.py --help`, the same as `jetkern finetune --help`."""

from jetkern.cli import run

if __name__ == "__main__":
    run("finetune")
