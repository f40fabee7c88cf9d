#!/usr/bin/env python
"""`data_tools/show.py --help`, the same as `jetkern show --help`."""

from jetkern.cli import run

if __name__ == "__main__":
    run("show")
