#!/usr/bin/env python
"""`train/generate.py --help`, the same as `jetkern generate --help`."""

from jetkern.cli import run

if __name__ == "__main__":
    run("generate")
