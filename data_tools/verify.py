#!/usr/bin/env python
"""`data_tools/verify.py --help`, the same as `jetkern verify --help`."""

from jetkern.cli import run

if __name__ == "__main__":
    run("verify")
