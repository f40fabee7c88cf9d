"""Particles as tokens and on a normal scale: what masked and autoregressive models predict.

``jetkern tokenize`` fits them; ``jetkern.training.tokenize.load_tokenizer`` reads what it wrote.
"""

from jetkern.tokenizers.kmeans import KMeans
from jetkern.tokenizers.scale import QuantileNormal
from jetkern.tokenizers.tokenizer import FEATURES, HITS, KINEMATICS, TRACKS, Tokenizer

__all__ = ["FEATURES", "HITS", "KINEMATICS", "TRACKS", "KMeans", "QuantileNormal", "Tokenizer"]
