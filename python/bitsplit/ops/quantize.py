"""Uniform quantization with a given scale and zero point, per tensor or per channel.

    code  = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)
    value = (code - zero_point) * scale

`qmin < qmax` lie in [-128, 127] or in [0, 255]. `scale` (floating) and `zero_point` (int32) hold one
element for the whole tensor, or one per channel along `axis`. On CPU tensors a scale that is not positive
and finite and a zero point outside [qmin, qmax] are errors; on CUDA tensors, where looking would wait for
the GPU, a bad scale turns its channel into NaN. Results have the memory format of the input; CPU and GPU
give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    """The representable value nearest to every element of x.

    Differentiable in x: the gradient passes where x is inside the representable range (it rounds to a code in
    [qmin, qmax] without clamping) and is zero outside.

    Args:
        x: any shape; float32, float64, float16 or bfloat16 (computed in float32). NaN stays NaN.
        scale: [1] or [x.shape[axis]]. zero_point: likewise, int32.
        axis: the channel axis; -1 when scale holds one element.

    Returns:
        Tensor like x.

    >>> scale, zero_point = torch.tensor([0.5]), torch.tensor([0], dtype=torch.int32)
    >>> fake_quantize(torch.tensor([0.3, 0.25, 9.0]), scale, zero_point, -1, -7, 7)
    tensor([0.5000, 0.0000, 3.5000])
    """
    return torch.ops.bitsplit.fake_quantize(x, scale, zero_point, axis, qmin, qmax)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    """The integer code of every element of x.

    Args: as for `fake_quantize`. NaN gets the code of zero: look for it with `ranges.channel_range` first.

    Returns:
        Codes in x's shape: int8 when qmin is negative, else uint8.
    """
    return torch.ops.bitsplit.quantize(x, scale, zero_point, axis, qmin, qmax)


@torch.no_grad()
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """The value of every code: `(code - zero_point) * scale`.

    Args:
        codes: any shape, int8 or uint8.
        scale: [1] or [codes.shape[axis]], float32 or float64. zero_point: likewise, int32.
        axis: the channel axis; -1 when scale holds one element.

    Returns:
        Values in the codes' shape and scale's dtype, without gradients; for codes that `quantize` made in
        that dtype they are the very bits of `fake_quantize`.
    """
    return torch.ops.bitsplit.dequantize(codes, scale, zero_point, axis)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, ctx.axis, ctx.qmin, ctx.qmax = inputs[-6:]
    ctx.save_for_backward(x, scale, zero_point)


def _gradient_of_x(ctx: Any, grad: Tensor) -> Tensor:
    x, scale, zero_point = ctx.saved_tensors
    return torch.ops.bitsplit.fake_quantize_backward(grad, x, scale, zero_point, ctx.axis, ctx.qmin, ctx.qmax)


def _fake_quantize_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _gradient_of_x(ctx, grad), None, None, None, None, None


def _fake_quantize_double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The backward is linear in its incoming gradient, with the same mask; x only decides the mask."""
    return _gradient_of_x(ctx, grad), None, None, None, None, None, None


torch.library.register_autograd(
    "bitsplit::fake_quantize", _fake_quantize_backward, setup_context=_save_for_backward
)
torch.library.register_autograd(
    "bitsplit::fake_quantize_backward", _fake_quantize_double_backward, setup_context=_save_for_backward
)


@torch.library.register_fake("bitsplit::fake_quantize")
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("bitsplit::fake_quantize_backward")
def _(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("bitsplit::quantize")
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.int8 if qmin < 0 else torch.uint8)


@torch.library.register_fake("bitsplit::dequantize")
def _(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)
