"""What the demo tries and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitsplit.methods import BitSplit, Brecq, MinMax

LEARNED_BITS = 4  # with more there is nothing left to gain; with activations it takes too long here


@dataclass(frozen=True)
class Widths:
    """Bits of weights and activations (None: float); first and last layer keep 8 bits."""

    weights: int
    activations: int | None = None

    def __str__(self) -> str:
        return f"W{self.weights}" if self.activations is None else f"W{self.weights}A{self.activations}"


@dataclass(frozen=True)
class Result:
    """One quantized network, or the float one (``widths`` None).

    Attributes:
        method: name of the method, "float" for the float network.
        widths: its bits.
        accuracy: percentage of test images classified right.
        same_class: percentage of test images with the same class as the float network gives.
        size: bytes of the network.
        seconds: time quantization took.
    """

    method: str
    widths: Widths | None
    accuracy: float
    same_class: float
    size: int
    seconds: float


METHODS = ("minmax", "mse", "kl", "bitsplit", "learned")
"""In the order of table and chart; ``learned`` is block reconstruction after the closed form."""


def chain_of(method: str, widths: Widths) -> Any:
    """What ``quantize`` gets for one of ``METHODS``; None where it is not tried."""
    if method == "kl":  # it chooses ranges of activations; its weights are those of minmax
        return None if widths.activations is None else MinMax(activations="kl")
    if method != "learned":
        return method
    if widths.weights > LEARNED_BITS or widths.activations is not None:
        return None
    blocks = Brecq(iterations=60, rate=1e-2, scale_rate=1e-3, bias_rate=1e-3)
    return BitSplit(levels="affine"), blocks


def methods_of(results: Sequence[Result]) -> list[str]:
    """The methods among ``results``, in the order of ``METHODS``."""
    present = {result.method for result in results}
    return [method for method in METHODS if method in present]
