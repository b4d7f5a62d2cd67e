"""AdaRound (ICML 2020): the rounding of each layer by itself is learned, so that its response stays."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from bitsplit.methods.clock import Clock
from bitsplit.methods.reconstruction import Reconstruction
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import Granularity, Piece, Samples


@register
class AdaRound(Reconstruction):
    """Layer by layer, inputs from the quantized predecessors; steps of activations stay as they started."""

    name = "adaround"
    policy: ClassVar[str] = "adaround"
    iterations: int = Field(10_000, ge=0)

    @property
    def granularity(self) -> Granularity:
        return "layer"

    def reconstruct(self, piece: Piece, samples: Samples) -> float:
        return self.learn_weights(piece, samples, Clock(self.iterations, piece.device))
