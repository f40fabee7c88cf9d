"""``python -m jetkern`` says what runs here; with a command, it is ``jetkern`` (for torchrun)."""

import sys

from jetkern.cli import main

if __name__ == "__main__":
    main(sys.argv[1:] or ["doctor"])
