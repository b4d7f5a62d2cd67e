"""What operations between layers do with integers; nothing here rounds.

Moves take values and exponents alike.  Sums align exponents by shifting to the left, which is exact; what
would leave int32 is an error.  A mean adds up and remembers by how much to divide: the next quantizer does,
when it rounds.
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
from bitsplit.integer.tensor import IntegerTensor, as_int32
from bitsplit.quantizers.powers import powers

Handler = Callable[..., Any]

MOVES = (
    "alias", "detach", "expand", "flip", "permute", "select", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unsqueeze",
)  # fmt: skip
RESHAPES = ("_unsafe_view", "reshape", "view")
MOST_NEGATIVE = -(2**31)


def call(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation of aten on integer tensors, in place where that is what it does."""
    name = func._schema.name.removeprefix("aten::")
    plain = name.removesuffix("_") if func._schema.is_mutable else name
    if plain in MOVES:
        return _move(lambda tensor, *rest: func(tensor, *rest, **kwargs), *args)
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


def _cat(tensors: Sequence[IntegerTensor], dim: int = 0) -> IntegerTensor:
    if not all(isinstance(tensor, IntegerTensor) for tensor in tensors):
        raise IntegerError("cat: all parts must come from the network's input")
    if len({tensor.divisor for tensor in tensors}) > 1:
        raise IntegerError("cat: means over different numbers of values have no common integers")
    values, exponents = (torch.cat([getattr(t, n) for t in tensors], dim) for n in ("values", "exponents"))
    return IntegerTensor(values, exponents, tensors[0].divisor)


def _pad(x: IntegerTensor, pad: Sequence[int], value: float = 0) -> IntegerTensor:
    if value != 0:
        raise IntegerError(f"constant_pad_nd: only zeros can be padded with, not {value}")
    exponents = F.pad(x.exponents, pad, value=int(x.exponents.min()))
    return IntegerTensor(F.pad(x.values, pad), exponents, x.divisor)


def _add(x: Any, other: Any, alpha: float = 1, sign: int = 1) -> IntegerTensor:
    if not isinstance(x, IntegerTensor) or not isinstance(other, IntegerTensor) or alpha != 1:
        raise IntegerError("add: both sides must come from the network's input")
    if x.divisor != other.divisor:
        raise IntegerError("add: means over different numbers of values have no common integers")
    exponents = torch.minimum(x.exponents, other.exponents)
    return IntegerTensor(as_int32(x.at(exponents) + sign * other.at(exponents)), exponents, x.divisor)


def _clamp(x: IntegerTensor, low: float | None = None, high: float | None = None) -> IntegerTensor:
    """Between two numbers, for which the exponents become fine enough."""
    ends = [None if end is None or math.isinf(end) else float(end) for end in (low, high)]
    finest = min([0, *(-_fraction_bits(end) for end in ends if end)])
    exponents = x.exponents.clamp(max=finest) if any(ends) else x.exponents
    values = x.at(exponents)
    for end, limit in zip(ends, (torch.maximum, torch.minimum), strict=True):
        if end is not None:
            steps = end * x.divisor * powers(-exponents, torch.float64)
            values = limit(values, steps.long())
    return IntegerTensor(as_int32(values), exponents, x.divisor)


def _fraction_bits(number: float) -> int:
    """Of a float, behind the point."""
    return number.as_integer_ratio()[1].bit_length() - 1


def _mean(
    x: IntegerTensor, dim: Sequence[int] | None = None, keepdim: bool = False, **_: Any
) -> IntegerTensor:
    dims = [d % x.dim() for d in dim] if dim else list(range(x.dim()))
    exponents = x.exponents.amin(dims, keepdim=True)
    total = x.at(exponents).sum(dims, keepdim=keepdim)
    count = math.prod(x.shape[d] for d in dims)
    return _divided(total, exponents.reshape(total.shape), x.divisor, count)


def _divided(total: Tensor, exponents: Tensor, divisor: int, count: int) -> IntegerTensor:
    """The sums ``total`` over ``count``, of which all factors of two go to the exponents."""
    twos = (count & -count).bit_length() - 1
    return IntegerTensor(as_int32(total), exponents - twos, divisor * (count >> twos))


def _windows(values: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """[..., rows, columns, window rows, window columns]."""
    return values.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1])


def _per_channel(x: IntegerTensor) -> Tensor:
    """The smallest exponent of every channel of an image, [..., 1, 1]."""
    return x.exponents.amin((-2, -1), keepdim=True)


def _pair(numbers: Sequence[int] | int) -> tuple[int, int]:
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    return (numbers[0], numbers[-1])


def _avg_pool(
    x: IntegerTensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> IntegerTensor:
    kernel, padding = _pair(kernel), _pair(padding)
    if ceil_mode or (any(padding) and not count_include_pad):
        raise IntegerError("avg_pool2d: all windows must have the same number of values")
    exponents = _per_channel(x)
    values = F.pad(x.at(exponents), (padding[1], padding[1], padding[0], padding[0]))
    total = _windows(values, kernel, _pair(stride) if stride else kernel).sum((-2, -1))
    return _divided(total, exponents, x.divisor, divisor_override or math.prod(kernel))


def _adaptive_avg_pool(x: IntegerTensor, size: Sequence[int]) -> IntegerTensor:
    if any(n % m for n, m in zip(x.shape[-2:], size, strict=True)):
        raise IntegerError(f"adaptive_avg_pool2d: {list(x.shape[-2:])} is not divisible by {list(size)}")
    return _avg_pool(x, [n // m for n, m in zip(x.shape[-2:], size, strict=True)])


def _max_pool(
    x: IntegerTensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[IntegerTensor, Tensor]:
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride) if stride else kernel
    if _pair(dilation) != (1, 1):
        raise IntegerError("max_pool2d: windows with gaps have no form in integers")
    exponents = _per_channel(x)
    ends: list[int] = []
    for axis in (1, 0):
        size = x.shape[axis - 2]
        whole, over = divmod(size + 2 * padding[axis] - kernel[axis], stride[axis])
        # one window more, unless it would begin behind the image
        more = ceil_mode and over and (whole + 1) * stride[axis] < size + padding[axis]
        ends += [padding[axis], padding[axis] + (stride[axis] - over if more else 0)]
    values = F.pad(as_int32(x.at(exponents)), ends, value=MOST_NEGATIVE)
    found = IntegerTensor(_windows(values, kernel, stride).amax((-2, -1)), exponents, x.divisor)
    return found, torch.empty(0, dtype=torch.int64, device=x.device)


_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(RESHAPES, _reshape),
    "_adaptive_avg_pool2d": _adaptive_avg_pool,
    "add": _add,
    "avg_pool2d": _avg_pool,
    "cat": _cat,
    "clamp": _clamp,
    "clone": lambda x, **_: IntegerTensor(x.values, x.exponents, x.divisor),
    "clamp_max": lambda x, high: _clamp(x, None, high),
    "clamp_min": lambda x, low: _clamp(x, low, None),
    "constant_pad_nd": _pad,
    "hardtanh": lambda x, low=-1.0, high=1.0: _clamp(x, low, high),
    "max_pool2d_with_indices": _max_pool,
    "mean": _mean,
    "relu": lambda x: _clamp(x, 0.0),
    "sub": lambda x, other, alpha=1: _add(x, other, alpha, -1),
}
