"""The commands, one file each. ``train/`` and ``data_tools/`` call them by path."""
