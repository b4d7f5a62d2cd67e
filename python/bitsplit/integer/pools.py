"""Means and pools of integers.

A mean adds up and remembers by how much to divide: the next quantizer does, when it rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitsplit.errors import IntegerError
from bitsplit.integer.sums import exact_below, fitting
from bitsplit.integer.tensor import IntegerTensor, as_int32

MOST_NEGATIVE = -(2**31)


def mean(
    x: IntegerTensor, dim: Sequence[int] | None = None, keepdim: bool = False, **_: Any
) -> IntegerTensor:
    dims = [d % x.dim() for d in dim] if dim else list(range(x.dim()))
    exponents = x.exponents.amin(dims, keepdim=True)
    count = math.prod(x.shape[d] for d in dims)
    found = _averaged("mean", x, exponents, lambda values: values.sum(dims, keepdim=True), count)
    if keepdim:
        return found
    return IntegerTensor(found.values.squeeze(dims), found.exponents.squeeze(dims), found.divisor)


def _averaged(
    name: str, x: IntegerTensor, exponents: Tensor, add_up: Callable[[Tensor], Tensor], count: int
) -> IntegerTensor:
    """Sums at ``exponents`` over ``count``, of which all factors of two go to the exponents."""
    values = x.at(exponents)
    twos = (count & -count).bit_length() - 1
    odd = count >> twos
    sums = fitting(name, add_up(values), add_up(values.double().abs()), exact_below(x, odd))
    return IntegerTensor(sums, exponents - twos, x.divisor * odd)


def _windows(values: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """[..., rows, columns, window rows, window columns]."""
    return values.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1])


def _per_channel(x: IntegerTensor) -> Tensor:
    """The smallest exponent of every channel of an image, [..., 1, 1]."""
    return x.exponents.amin((-2, -1), keepdim=True)


def _pair(numbers: Sequence[int] | int) -> tuple[int, int]:
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    return (numbers[0], numbers[-1])


def avg_pool(
    x: IntegerTensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> IntegerTensor:
    kernel, padding = _pair(kernel), _pair(padding)
    exponents = _per_channel(x)
    stride = _pair(stride) if stride else kernel
    short = ceil_mode and any(
        (size + 2 * pad - width) % step
        for size, pad, width, step in zip(x.shape[-2:], padding, kernel, stride, strict=True)
    )
    if short or (any(padding) and not count_include_pad):
        raise IntegerError("avg_pool2d: all windows must have the same number of values")

    def add_up(values: Tensor) -> Tensor:
        values = F.pad(values, (padding[1], padding[1], padding[0], padding[0]))
        return _windows(values, kernel, stride).sum((-2, -1))

    return _averaged("avg_pool2d", x, exponents, add_up, divisor_override or math.prod(kernel))


def adaptive_avg_pool(x: IntegerTensor, size: Sequence[int]) -> IntegerTensor:
    if any(n % m for n, m in zip(x.shape[-2:], size, strict=True)):
        raise IntegerError(f"adaptive_avg_pool2d: {list(x.shape[-2:])} is not divisible by {list(size)}")
    return avg_pool(x, [n // m for n, m in zip(x.shape[-2:], size, strict=True)])


def max_pool(
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
    values = F.pad(as_int32("max_pool2d", x.at(exponents)), ends, value=MOST_NEGATIVE)
    largest = _windows(values, kernel, stride).amax((-2, -1))
    places = torch.full_like(largest, -1, dtype=torch.int64)  # none: nothing here can read them
    return IntegerTensor(largest, exponents, x.divisor), places
