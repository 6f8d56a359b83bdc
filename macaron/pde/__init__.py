"""Equations from data: constrained derivative filters, SymNet, PDE-Net 2.0. Stands on dynamics only."""

from macaron.pde.filters import DerivativeFilter, correlate, k2m, m2k, moment_matrix
from macaron.pde.network import PDENet, data_loss, sparsity, stability_loss
from macaron.pde.symnet import SymNet

__all__ = [
    "DerivativeFilter",
    "PDENet",
    "SymNet",
    "correlate",
    "data_loss",
    "k2m",
    "m2k",
    "moment_matrix",
    "sparsity",
    "stability_loss",
]
