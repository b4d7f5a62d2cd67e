"""AdaRound (ICML 2020): the rounding of each layer by itself is learned, so that its response stays."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from bitsplit.methods.learned_rounding import LearnedRounding
from bitsplit.methods.registry import register


@register
class AdaRound(LearnedRounding):
    """Layer by layer, inputs from the quantized predecessors; steps of activations stay as they started."""

    name = "adaround"
    policy: ClassVar[str | None] = "adaround"
    unit: Literal["layer"] = "layer"
    iterations: int = Field(10_000, ge=0)
