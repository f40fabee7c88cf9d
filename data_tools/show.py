#!/usr/bin/env python
"""Prints and draws what shards hold: `data_tools/show.py --help`, the same as `jetkern show`."""

import sys

from jetkern.cli.show import main

if __name__ == "__main__":
    sys.exit(main())
