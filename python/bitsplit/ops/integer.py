"""Networks in integers: what a layer adds up, and what a quantizer makes of it.

CPU and GPU give the same integers, for every number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def integer_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution that pads with zeros; its sums are not looked at: prove before that they fit int32.

    Args:
        x: int16 [n, c, h, w]. weight: int16 [m, c / groups, kh, kw]. bias: int32 [m] or None.
        stride, padding, dilation: of rows and of columns.

    Returns:
        int32 [n, m, h', w'].

    >>> x, weight = torch.tensor([[[[1, 2, 3]]]]).short(), torch.tensor([[[[1, 10]]]]).short()
    >>> integer_conv(x, weight, None, (1, 1), (0, 0), (1, 1), 1)
    tensor([[[[21, 32]]]], dtype=torch.int32)
    """
    return torch.ops.bitsplit.integer_conv(x, weight, bias, stride, padding, dilation, groups)


def requantize(values: Tensor, shift: Tensor, divisor: int, low: int, high: int) -> Tensor:
    """`values / divisor * 2^-shift`, rounded once, half to even, and clamped.

    Args:
        values: int32, any shape. shift: int32, broadcast against them; negative ones shift to the left.
        divisor: 1 (then it is a shift with rounding and nothing else) to 2^20 - 1.
        low, high: in int16.

    Returns:
        int16, in the shape of the values.

    >>> requantize(torch.tensor([6, 10, -6, 99]).int(), torch.tensor([2]).int(), 1, -7, 7)
    tensor([ 2,  2, -2,  7], dtype=torch.int16)
    """
    return torch.ops.bitsplit.requantize(values, shift, divisor, low, high)


@torch.library.register_fake("bitsplit::integer_conv")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    lengths = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    return x.new_empty((x.shape[0], weight.shape[0], *lengths), dtype=torch.int32)


@torch.library.register_fake("bitsplit::requantize")
def _(values: Tensor, shift: Tensor, divisor: int, low: int, high: int) -> Tensor:
    return torch.empty_like(values, dtype=torch.int16, memory_format=torch.contiguous_format)
