"""Decoding: a beam search that knows tensors and a decoder's steps, and no host."""

from macaron.decoding.lattice import Lattice
from macaron.decoding.search import BeamSearch, Hypothesis, Options, Source, Stepper, Symbols
from macaron.decoding.weights import PRECISIONS, choose_precision, packed

__all__ = [
    "PRECISIONS",
    "BeamSearch",
    "Hypothesis",
    "Lattice",
    "Options",
    "Source",
    "Stepper",
    "Symbols",
    "choose_precision",
    "packed",
]
