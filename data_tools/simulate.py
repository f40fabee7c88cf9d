#!/usr/bin/env python
"""Simulates jets: `data_tools/simulate.py --help`, the same as `jetkern simulate`."""

import sys

from jetkern.cli.simulate import main

if __name__ == "__main__":
    sys.exit(main())
