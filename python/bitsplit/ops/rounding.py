"""Learned rounding (AdaRound): a variable v for every weight decides between two neighbouring levels.

    soft weight = scale * (base + h(v)),  h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)

While v is learned a regulariser, the sum of 1 - |2 h(v) - 1|^b, pushes every h towards 0 or 1; b falls, so
that at first only what is nearly decided feels it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STRETCH = 0.1  # h reaches 0 and 1 so far outside of the sigmoid's own range
BETAS = (0.9, 0.999)  # of Adam; its epsilon is 1e-8
FIRST_EXPONENT, LAST_EXPONENT = 20.0, 2.0  # of the regulariser, as in AdaRound


def soft_bit(v: Tensor) -> Tensor:
    """h(v)."""
    return ((1 + 2 * STRETCH) * torch.sigmoid(v) - STRETCH).clamp(0, 1)


def inverse_soft_bit(h: Tensor) -> Tensor:
    """The v with h(v) = h, for 0 <= h <= 1."""
    return torch.logit((h + STRETCH) / (1 + 2 * STRETCH))


def rounding_schedule(
    iterations: int,
    learning_rate: float,
    weight: float,
    warm_up: float = 0.2,
) -> Tensor:
    """What `rounding_step` needs in every iteration, Tensor[iterations, 4]; b falls linearly.

    Args:
        weight: of the regulariser, which is off for the first `warm_up` of the iterations.
    """
    step = torch.arange(1, iterations + 1, dtype=torch.float64)
    progress = ((step - 1 - warm_up * iterations) / max(1, (1 - warm_up) * iterations)).clamp(0, 1)
    columns = (
        learning_rate / (1 - BETAS[0] ** step),
        1 / (1 - BETAS[1] ** step),
        torch.where(step > warm_up * iterations, weight, 0.0),
        FIRST_EXPONENT + (LAST_EXPONENT - FIRST_EXPONENT) * progress,
    )
    return torch.stack(columns, 1).float()


def rounding_step(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    v: Sequence[Tensor],
    mean: Sequence[Tensor],
    square: Sequence[Tensor],
    base: Sequence[Tensor],
    scale: Sequence[Tensor],
    axis: Sequence[int],
    schedule: Tensor,
) -> None:
    """One iteration for all layers of a unit, in place: Adam's step on v, then the next soft weights.

    Args:
        weights: the soft weights, float32 or float64, dense; they are overwritten.
        grads: of the loss with regard to the weights.
        v, mean, square: the variables and Adam's state (zeros at first), strides of the weights.
        base: int16, the lower of the two levels, less the zero point.
        scale: one element, or one per channel along `axis` of that weight.
        schedule: float32 [4] on the device of the weights, a row of `rounding_schedule`.
    """
    torch.ops.bitsplit.rounding_step(weights, grads, v, mean, square, base, scale, axis, schedule)


@torch.library.register_fake("bitsplit::rounding_step")
def _(*arguments: object) -> None:
    return None
