"""Quantization with a learned step (LSQ), of which random elements are left out (QDrop).

Which elements are dropped follows from a key (seed, iteration), an int64 [2] tensor on the device of the
input, and from the position of the element in memory. The same key drops the same elements again, so nothing
is stored for the backward; an operator in a captured CUDA graph draws anew when the iteration in the key is
raised. All calls of one iteration that shall drop independently (the quantizers of a block, say) need
different seeds. CPU and GPU, and every number of threads, give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def learned_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, drop: float, key: Tensor
) -> Tensor:
    """`quantize.fake_quantize` of x with one learned scale, but for elements that are dropped.

    Differentiable in x: the gradient passes where x was dropped or lies inside the representable range.
    Differentiable in scale as in LSQ, over the elements that were not dropped: `level - x / scale` inside the
    range, the level itself outside, where level = code - zero_point. Callers scale that gradient themselves.

    Args:
        x: any shape; float32, float64, float16 or bfloat16 (computed in float32). NaN stays NaN.
        scale: floating, one element. On the CPU one that is not positive and finite is an error; on CUDA it
            turns every element that is not dropped into NaN, and its own gradient.
        zero_point: int32, one element, in [qmin, qmax].
        qmin, qmax: both in [-128, 127] or both in [0, 255].
        drop: the probability with which an element is passed through as it is; 0 is never, 1 always.
        key: int64 [2] (seed, iteration) on the device of x; quantizers that draw apart need different ones.
            It is read again by the backward, so change it after that only. Not looked at when drop is 0.

    Returns:
        Tensor like x.

    >>> scale, zero_point = torch.tensor([0.5]), torch.tensor([0], dtype=torch.int32)
    >>> learned_quantize(torch.tensor([0.3, 9.0]), scale, zero_point, -7, 7, 0.0, torch.tensor([0, 0]))
    tensor([0.5000, 3.5000])
    """
    return torch.ops.bitsplit.step_quantize(x, scale, zero_point, qmin, qmax, drop, key)


@torch.no_grad()
def mix(a: Tensor, b: Tensor, share: float, key: Tensor) -> Tensor:
    """Every element from b with probability `share`, else from a. Not differentiable.

    Args:
        a: any shape; float32, float64, float16 or bfloat16.
        b: shape, dtype and device of a.
        share: in [0, 1]; 0 gives a, 1 gives b.
        key: as for `learned_quantize`; where key and share are the same, that drops from a what is of b here.

    Returns:
        Tensor like a, in a's memory format.
    """
    return torch.ops.bitsplit.mix(a, b, share, key)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, ctx.qmin, ctx.qmax, ctx.drop, key = inputs
    ctx.save_for_backward(x, scale, zero_point, key)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, scale, zero_point, key = ctx.saved_tensors
    grad_x, grad_scale = torch.ops.bitsplit.step_quantize_backward(
        grad, x, scale, zero_point, ctx.qmin, ctx.qmax, ctx.drop, key
    )
    return grad_x, grad_scale, None, None, None, None, None


def _differentiable_once(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError("learned_quantize has no second derivative")


torch.library.register_autograd("bitsplit::step_quantize", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("bitsplit::step_quantize_backward", _differentiable_once)


@torch.library.register_fake("bitsplit::step_quantize")
def _(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, drop: float, key: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("bitsplit::step_quantize_backward")
def _(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, drop: float, key: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), scale.new_empty(scale.shape)


@torch.library.register_fake("bitsplit::mix")
def _(a: Tensor, b: Tensor, share: float, key: Tensor) -> Tensor:
    return torch.empty_like(a)
