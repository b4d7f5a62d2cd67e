"""Activation methods: one file each, a config and how it chooses scale and zero point."""

from bitsplit.methods.activations.aciq import AciqActivations
from bitsplit.methods.activations.alternation import BitSplitActivations
from bitsplit.methods.activations.kl import KlActivations
from bitsplit.methods.activations.minmax import MinMaxActivations
from bitsplit.methods.activations.mse import MseActivations
from bitsplit.methods.activations.percentile import PercentileActivations

__all__ = [
    "AciqActivations",
    "BitSplitActivations",
    "KlActivations",
    "MinMaxActivations",
    "MseActivations",
    "PercentileActivations",
]
