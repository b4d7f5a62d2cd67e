"""What a model *is*: observe one forward, layer kinds, norm folding, units, coverage."""

from bitsplit.network.baking import bake_effective_weights
from bitsplit.network.fold import FoldReport, fold_norms
from bitsplit.network.folded import FoldedNorm
from bitsplit.network.layers import KINDS, Columns, LayerKind, kind_of
from bitsplit.network.model import Layer, Network, Norm, Uncovered, Unit
from bitsplit.network.observe import observe
from bitsplit.network.ties import untie_layers

__all__ = [
    "KINDS",
    "Columns",
    "FoldReport",
    "FoldedNorm",
    "Layer",
    "LayerKind",
    "Network",
    "Norm",
    "Uncovered",
    "Unit",
    "bake_effective_weights",
    "fold_norms",
    "kind_of",
    "observe",
    "untie_layers",
]
