"""What the demo tries and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bitsplit.methods import MinMax


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


METHODS: dict[str, Any] = {
    "minmax": "minmax",
    "mse": "mse",
    "kl": MinMax(activations="kl"),
    "bitsplit": "bitsplit",
}
"""What ``quantize`` gets for each method, in the order of table and chart."""


def methods_of(results: Sequence[Result]) -> list[str]:
    """The methods among ``results``, in the order of ``METHODS``."""
    present = {result.method for result in results}
    return [method for method in METHODS if method in present]
