"""Sums of tensors in int32, and which of them float32 might round."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from torch import Tensor

from bitsplit.errors import IntegerError
from bitsplit.integer.tensor import EXACT_IN_FLOAT32, LARGEST, IntegerTensor

EXACT_QUOTIENTS = 2**21  # sums below, divided in float32, stay on their side of every half

# told the name of an operation whose sums float32 might round
on_wide_sum: ContextVar[Callable[[str], None]] = ContextVar("on_wide_sum", default=lambda operation: None)


def exact_below(x: IntegerTensor, divisor: int = 1) -> int:
    """Sums of ``x``, divided by an odd number or 1, that float32 gets right; it has rounded earlier means."""
    if x.divisor > 1:
        return 0
    return EXACT_IN_FLOAT32 if divisor == 1 else EXACT_QUOTIENTS


def fitting(name: str, sums: Tensor, reach: Tensor, limit: int) -> Tensor:
    """``sums`` in int32, of which no part exceeds ``reach``, float64: where they are wide int64 may wrap.

    ``on_wide_sum`` is told where they reach ``limit``.
    """
    most = float(reach.max()) if reach.numel() else 0.0
    if most > LARGEST:
        raise IntegerError(f"{name}: sums that reach {most:.0f} leave int32")
    if most >= limit:
        on_wide_sum.get()(name)
    return sums.int()
