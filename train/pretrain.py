#!/usr/bin/env python
"""`train/pretrain.py --help`, the same as `jetkern pretrain --help`."""

from jetkern.cli import run

if __name__ == "__main__":
    run("pretrain")
