#!/usr/bin/env python
"""`data_tools/convert.py --help`, the same as `jetkern convert --help`."""

from jetkern.cli import run

if __name__ == "__main__":
    run("convert")
