#!/usr/bin/env python
"""Checks shards: `data_tools/verify.py --help`, the same as `jetkern verify`."""

import sys

from jetkern.cli.verify import main

if __name__ == "__main__":
    sys.exit(main())
