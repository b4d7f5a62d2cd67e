"""Which chain to take when no method is named, by the time it may cost.

Chosen by what `docs/benchmarks/` shows: affine levels, a scale for every input channel and error
compensation in closed form give most of the accuracy within seconds; tuning the whole network gives most of
the rest within minutes; learning block after block helps where activations have two or three bits.
"""

from __future__ import annotations

from typing import Literal, get_args

from bitsplit.methods.base import Method
from bitsplit.methods.bitsplit import BitSplit
from bitsplit.methods.brecq import Brecq
from bitsplit.methods.qdrop import QDrop
from bitsplit.methods.whole import Global

Effort = Literal["fast", "normal", "best"]

FEW_BITS = 4  # with more neither another level nor scales per input channel gain what they cost to run
LEARNED = {"iterations": 2000, "rate": 1e-2, "scale_rate": 1e-3, "bias_rate": 1e-3}


def preset(effort: str, weights: int | None, activations: int | None) -> tuple[Method, ...]:
    """The chain for an effort and the bits that are asked for."""
    if effort not in get_args(Effort):
        raise ValueError(f"effort is one of {', '.join(get_args(Effort))}, got {effort!r}")
    start = BitSplit(levels="affine" if _few(weights) else "symmetric", ecaq=_few(activations))
    if effort == "fast":
        return (start,)
    if effort == "normal":
        return (start, Global())
    learned = Brecq(**LEARNED) if activations is None else QDrop(**LEARNED, step_rate=4e-4)
    return (start, learned, Global())


def _few(bits: int | None) -> bool:
    return isinstance(bits, int) and bits <= FEW_BITS
