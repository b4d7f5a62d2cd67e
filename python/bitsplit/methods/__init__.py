"""Methods: one file each, a config and what it does to a layer or to the whole network."""

from bitsplit.methods.adaround import AdaRound
from bitsplit.methods.bias_correction import BiasCorrection
from bitsplit.methods.bitsplit import BitSplit
from bitsplit.methods.brecq import Brecq
from bitsplit.methods.equalize import Equalize
from bitsplit.methods.flexround import FlexRound
from bitsplit.methods.minmax import MinMax
from bitsplit.methods.mse import Mse
from bitsplit.methods.nearest import Nearest
from bitsplit.methods.norms import ReestimateNorms
from bitsplit.methods.qdrop import QDrop
from bitsplit.methods.rapq import Rapq
from bitsplit.methods.whole import Global

__all__ = [
    "AdaRound",
    "BiasCorrection",
    "BitSplit",
    "Brecq",
    "Equalize",
    "FlexRound",
    "Global",
    "MinMax",
    "Mse",
    "Nearest",
    "QDrop",
    "Rapq",
    "ReestimateNorms",
]
