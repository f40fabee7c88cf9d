#!/usr/bin/env python
"""`data_tools/simulate.py --help`, the same as `jetkern simulate --help`."""

from jetkern.cli import run

if __name__ == "__main__":
    run("simulate")
