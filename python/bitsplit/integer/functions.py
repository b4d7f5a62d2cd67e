"""What operations between layers do with integers; nothing here rounds.

Moves take values and exponents alike.  Sums align exponents by shifting to the left, which is exact; what
would leave int32 is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsplit.errors import IntegerError
from bitsplit.integer.pools import adaptive_avg_pool, avg_pool, max_pool, mean
from bitsplit.integer.sums import exact_below, fitting
from bitsplit.integer.tensor import IntegerTensor, as_int32
from bitsplit.quantizers.powers import powers

Handler = Callable[..., Any]

MOVES = (
    "alias", "detach", "expand", "flip", "permute", "pixel_shuffle", "repeat", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze",
)  # fmt: skip
MOVES_OF_FLOATS = ("_upsample_nearest_exact2d", "upsample_nearest1d", "upsample_nearest2d")
FARTHEST_END = 2.0**62  # of a clamp: beyond all values
RESHAPES = ("_unsafe_view", "reshape", "view")


def call(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation of aten on integer tensors, in place where that is what it does."""
    name = func._schema.name.removeprefix("aten::")
    plain = name.removesuffix("_") if func._schema.is_mutable else name
    if plain in MOVES:
        return _move(lambda tensor, *rest: func(tensor, *rest, **kwargs), *args)
    if plain in MOVES_OF_FLOATS:  # torch has them for floats only, which are exact in 64 bits
        return _move(lambda tensor, *rest: func(tensor.double(), *rest, **kwargs).int(), *args)
    if plain not in _HANDLERS:
        raise IntegerError(f"{name} has no form in integers")
    result = _HANDLERS[plain](*args, **kwargs)
    if not func._schema.is_mutable:
        return result
    target = args[0]
    if target.shares_memory:
        raise IntegerError(f"{name}: a change in place of a tensor that has other views has no such form")
    target.values, target.exponents, target.divisor = result.values, result.exponents, result.divisor
    return target


def _move(function: Callable[..., Any], x: IntegerTensor, *rest: Any) -> Any:
    values, exponents = function(x.values, *rest), function(x.exponents, *rest)
    moved = pytree.tree_map(lambda v, e: IntegerTensor(v, e, x.divisor), values, exponents)
    for tensor in (x, *pytree.tree_leaves(moved)):
        tensor.shares_memory = True
    return moved


def _reshape(x: IntegerTensor, shape: Sequence[int]) -> IntegerTensor:
    return _move(torch.reshape, x, shape)


def _cat(
    tensors: Sequence[IntegerTensor], dim: int = 0, function: Callable[..., Tensor] = torch.cat
) -> IntegerTensor:
    name = function.__name__
    _require_integers(name, *tensors)
    if len({tensor.divisor for tensor in tensors}) > 1:
        raise IntegerError(f"{name}: means over different numbers of values have no common integers")
    values, exponents = (function([getattr(t, n) for t in tensors], dim) for n in ("values", "exponents"))
    return IntegerTensor(values, exponents, tensors[0].divisor)


def _pad(x: IntegerTensor, pad: Sequence[int], value: float = 0) -> IntegerTensor:
    if value != 0:
        raise IntegerError(f"constant_pad_nd: only zeros can be padded with, not {value}")
    exponents = F.pad(x.exponents, pad, value=int(x.exponents.min()))
    return IntegerTensor(F.pad(x.values, pad), exponents, x.divisor)


def _add(x: Any, other: Any, alpha: float = 1, sign: int = 1) -> IntegerTensor:
    name = "add" if sign > 0 else "sub"
    _require_integers(name, x, other)
    if alpha != 1:
        raise IntegerError(f"{name}: alpha must be 1, got {alpha}")
    if x.divisor != other.divisor:
        raise IntegerError(f"{name}: means over different numbers of values have no common integers")
    exponents = torch.minimum(x.exponents, other.exponents)
    sums = x.at(exponents) + sign * other.at(exponents)
    return IntegerTensor(fitting(name, sums, sums.double().abs(), exact_below(x)), exponents, x.divisor)


def _require_integers(name: str, *parts: Any) -> None:
    for part in parts:
        if not isinstance(part, IntegerTensor):
            got = "a float tensor (as the network's input is)" if isinstance(part, Tensor) else part
            raise IntegerError(f"{name}: all parts must come out of quantized layers, got {got}")


def _clamp(x: IntegerTensor, low: float | None = None, high: float | None = None) -> IntegerTensor:
    """Between two numbers, taken as float32, for which the exponents become fine enough."""
    if any(isinstance(end, Tensor) and end.dim() for end in (low, high)):
        raise IntegerError("clamp: both ends must be numbers, got a tensor")
    ends = [None if end is None or math.isinf(end) else _in_float32(end) for end in (low, high)]
    finest = min([0, *(-_fraction_bits(end) for end in ends if end)])
    exponents = x.exponents.clamp(max=finest) if any(ends) else x.exponents
    values = x.at(exponents)
    for end, limit in zip(ends, (torch.maximum, torch.minimum), strict=True):
        if end is not None:
            steps = end * x.divisor * powers(-exponents, torch.float64)
            values = limit(values, steps.clamp(-FARTHEST_END, FARTHEST_END).long())
    return IntegerTensor(as_int32("clamp", values), exponents, x.divisor)


def _in_float32(number: float) -> float:
    return torch.tensor(float(number), dtype=torch.float32).item()


def _fraction_bits(number: float) -> int:
    """Of a float, behind the point."""
    return number.as_integer_ratio()[1].bit_length() - 1


_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(RESHAPES, _reshape),
    "_adaptive_avg_pool2d": adaptive_avg_pool,
    "add": _add,
    "avg_pool2d": avg_pool,
    "cat": _cat,
    "clamp": _clamp,
    "clone": lambda x, **_: IntegerTensor(x.values, x.exponents, x.divisor),
    "clamp_max": lambda x, high: _clamp(x, None, high),
    "clamp_min": lambda x, low: _clamp(x, low, None),
    "constant_pad_nd": _pad,
    "hardtanh": lambda x, low=-1.0, high=1.0: _clamp(x, low, high),
    "max_pool2d_with_indices": max_pool,
    "mean": mean,
    "neg": lambda x: IntegerTensor(as_int32("neg", -x.values.long()), x.exponents, x.divisor),
    "relu": lambda x: _clamp(x, 0.0),
    "stack": lambda tensors, dim=0: _cat(tensors, dim, torch.stack),
    "sub": lambda x, other, alpha=1: _add(x, other, alpha, -1),
}
