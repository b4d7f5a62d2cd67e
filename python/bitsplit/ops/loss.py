"""The loss of reconstructing a target, with its gradient, in one pass; and the divergence of class scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(NamedTuple):
    """What `reconstruction_loss` returns.

    loss: float64 [], on the device of the output.
    grad: d loss / d output, in the output's dtype and memory format.
    """

    loss: Tensor
    grad: Tensor


@torch.no_grad()
def reconstruction_loss(
    output: Tensor, target: Tensor, weight: Tensor | None = None, p: float = 2.0, scale: float = 1.0
) -> Loss:
    """`scale * sum(weight * |output - target|^p)` and its gradient.

    Autograd does not know of it: go on with `torch.autograd.backward(output, grad)`. The same bits for every
    number of threads.

    Args:
        output: any shape; float32, float64, float16 or bfloat16 (computed in float32, added up in float64).
        target: shape and device of output, and its dtype; float32 too, where the output is a half one.
        weight: as target; None for 1 everywhere.
        p: positive; 2 is the fastest. Equal values have gradient 0 for every p.
        scale: of the loss; 1 / output.shape[0] for the mean over a batch.

    Returns:
        Loss and gradient. NaN shows in both. The loss of nothing is 0.

    >>> output = torch.tensor([1.0, 2.0, 5.0])
    >>> reconstruction_loss(output, torch.tensor([1.0, 4.0, 4.0]), scale=0.5)
    Loss(loss=tensor(2.5000, dtype=torch.float64), grad=tensor([ 0., -2.,  1.]))
    """
    return Loss(*torch.ops.bitsplit.reconstruction_loss(output, target, weight, p, scale))


def class_divergence(got: Tensor, wanted: Tensor) -> Tensor:
    """Kullback-Leibler divergence of class probabilities from those of ``wanted``, summed over all rows.

    Args:
        got, wanted: class scores [rows, classes]; halves are computed in float32.

    Returns:
        Tensor [], differentiable in ``got``.
    """
    dtype = torch.promote_types(got.dtype, torch.float32)
    return F.kl_div(got.to(dtype).log_softmax(1), wanted.to(dtype).softmax(1), reduction="sum")


@torch.library.register_fake("bitsplit::reconstruction_loss")
def _(output: Tensor, target: Tensor, weight: Tensor | None, p: float, scale: float) -> tuple[Tensor, Tensor]:
    return output.new_empty((), dtype=torch.float64), torch.empty_like(output)
