#!/usr/bin/env python
"""Converts jets to shards: `data_tools/convert.py --help`, the same as `jetkern convert`."""

import sys

from jetkern.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
