"""jetkern: fast kernels, a Point-Edge Transformer and training drivers for jets."""

from jetkern.jets import Jets

__version__ = "0.1.0"
__all__ = ["Jets", "__version__"]
