"""What methods see of the data: second moments of patches, and samples of values."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bitsplit.ops.threads import one_thread

VARIATION = 1e-6  # variance over mean square that products in float32 can still tell from none


@dataclass(frozen=True)
class Statistics:
    """Sums over all patches x (columns of X) and float responses y of one layer, in float64.

    gram: X X^T, Tensor[g, N, N].  cross: X Y^T, Tensor[g, N, M].  sum_x: Tensor[g, N].
    sum_y, sum_yy: Tensor[g, M].  ``count`` patches.  The responses are taken without the layer's bias.
    """

    gram: Tensor
    cross: Tensor
    sum_x: Tensor
    sum_y: Tensor
    sum_yy: Tensor
    count: int

    def __add__(self, other: Statistics) -> Statistics:
        """Over the patches of both."""
        mine, others = ([getattr(sums, field.name) for field in fields(sums)] for sums in (self, other))
        return Statistics(*(a + b for a, b in zip(mine, others, strict=True)))

    def centred(self) -> Statistics:
        """The same with the means removed from x and y: what remains once a bias absorbs them.

        Inputs that never vary become dead: what the subtraction leaves of them is rounding noise.
        """
        gram = torch.baddbmm(self.gram, self.sum_x.unsqueeze(2), self.mean_x.unsqueeze(1), alpha=-1)
        cross = self.cross - self.sum_x.unsqueeze(2) * self.mean_y.unsqueeze(1)
        before, after = (torch.diagonal(matrix, dim1=1, dim2=2) for matrix in (self.gram, gram))
        varies = (after > VARIATION * before).to(gram.dtype)
        return replace(
            self,
            gram=gram.mul_(varies.unsqueeze(2)).mul_(varies.unsqueeze(1)),
            cross=cross * varies.unsqueeze(2),
            sum_yy=(self.sum_yy - self.sum_y * self.mean_y).clamp(min=0),
        )

    @property
    def mean_x(self) -> Tensor:
        return self.sum_x / self.count

    @property
    def mean_y(self) -> Tensor:
        return self.sum_y / self.count


@dataclass(frozen=True)
class InputSample:
    """Values that arrive at a quantizer.

    values: Tensor[n] (or Tensor[n, channels] when asked per channel), float32.  low, high: the exact range
    over all calibration data, Tensor[1] (or Tensor[channels]).
    """

    values: Tensor
    low: Tensor
    high: Tensor

    def channels(self) -> list[InputSample]:
        """One sample per channel; itself when it was not taken per channel."""
        if self.values.dim() == 1:
            return [self]
        ranges = zip(self.values.unbind(1), self.low.split(1), self.high.split(1), strict=True)
        return [InputSample(values, low, high) for values, low, high in ranges]


@one_thread()
def refitted_bias(bias: Tensor | None, weight: Tensor, sums: Statistics) -> Tensor:
    """The bias [g * M] that keeps the mean response with weight Q [g, M, N]: b + mean(y) - Q mean(x)."""
    mean_response = (weight.double() @ sums.mean_x.unsqueeze(2)).squeeze(2)
    shift = sums.mean_y - mean_response
    return shift.flatten() + (0 if bias is None else bias.double())
