#!/usr/bin/env python
"""`train/evaluate.py --help`, the same as `jetkern evaluate --help`."""

from jetkern.cli import run

if __name__ == "__main__":
    run("evaluate")
