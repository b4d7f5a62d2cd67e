"""bitsplit: trained vision CNNs become accurate 2-to-8-bit ones, after training, from a few images.

>>> quantized = bitsplit.quantize(model, images, weights=4, activations=8)  # doctest: +SKIP
"""

from bitsplit._build_info import build_info
from bitsplit._version import __version__
from bitsplit.api import plan, quantize
from bitsplit.artifact import load, save
from bitsplit.distillation import Distilled, contact_sheet
from bitsplit.errors import BitsplitError
from bitsplit.evaluation import agreement, evaluate
from bitsplit.integer import IntegerNetwork
from bitsplit.methods import (
    AdaRound,
    BiasCorrection,
    BitSplit,
    Brecq,
    Equalize,
    FlexRound,
    Global,
    MinMax,
    Mse,
    Nearest,
    QDrop,
    Rapq,
    ReestimateNorms,
)
from bitsplit.plan import Plan
from bitsplit.quantizers import codes, scales
from bitsplit.recipe import Recipe
from bitsplit.report import QuantizationReport, report_of, summary
from bitsplit.widths import Budget, MixedPlan, Sensitivities, mixed, sensitivities

__all__ = [
    "AdaRound",
    "BiasCorrection",
    "BitSplit",
    "BitsplitError",
    "Budget",
    "Brecq",
    "Distilled",
    "Equalize",
    "FlexRound",
    "Global",
    "IntegerNetwork",
    "MinMax",
    "MixedPlan",
    "Mse",
    "Nearest",
    "Plan",
    "QDrop",
    "QuantizationReport",
    "Rapq",
    "Recipe",
    "ReestimateNorms",
    "Sensitivities",
    "__version__",
    "agreement",
    "build_info",
    "codes",
    "contact_sheet",
    "evaluate",
    "load",
    "mixed",
    "plan",
    "quantize",
    "report_of",
    "save",
    "scales",
    "sensitivities",
    "summary",
]
