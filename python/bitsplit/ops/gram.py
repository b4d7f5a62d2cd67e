"""Second-order statistics of a layer, straight from its feature maps: G = X Xᵀ, C = X Yᵀ and plain sums.

X holds the patches a layer sees, one column a patch of N = channels per group * kernel volume values in the
order of `weight.reshape(out, -1)`; Y holds its responses, M values per group. Patches are never all unfolded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def gram(
    x: Tensor,
    y: Tensor | None,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    positions: Tensor | None,
    G: Tensor,
    C: Tensor,
    sum_x: Tensor,
    sum_y: Tensor,
    sum_yy: Tensor,
) -> int:
    """Add one batch to the accumulators, in place; returns the number of patches it had.

    Args:
        x: the layer's input, float32 or float64, any strides: `[B, channels, *spatial]` with as many spatial
            axes (1 to 3) as `kernel` has entries, or `[..., N]` for a linear layer, whose `kernel` is empty.
        y: the layer's output, of x's dtype: `[B, groups*M, *out spatial]` or `[..., M]`; None leaves C, sum_y
            and sum_yy alone.
        kernel, stride, padding, dilation: one number a spatial axis. Padding is with zeros.
        groups: groups of channels; every group has its own statistics.
        positions: int64 `[B, P]`, flat output positions: only those patches count, repeats included; None
            means all. Not for linear layers.
        G: float64 `[groups, N, N]`.
        C: float64 `[groups, N, M]`.
        sum_x: float64 `[groups, N]`.
        sum_y, sum_yy: float64 `[groups, M]`; sum_yy sums squares.
    """
    if len(kernel) < 2:
        x, y, kernel, stride, padding, dilation = _lift(x, y, kernel, stride, padding, dilation, positions)
    torch.ops.bitsplit.gram(
        x, y, kernel, stride, padding, dilation, groups, positions, G, C, sum_x, sum_y, sum_yy
    )
    if positions is not None:
        return positions.numel()
    extents = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    return x.shape[0] * math.prod((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in extents)


def _lift(x, y, kernel, stride, padding, dilation, positions):
    """A linear layer or a 1-d convolution as a 2-d convolution."""
    if len(kernel) == 0:
        if positions is not None:
            raise ValueError("gram: positions are for convolutions; select rows of a linear layer's input")
        rows = [None if t is None else t.reshape(-1, t.shape[-1], 1, 1) for t in (x, y)]
        return *rows, [1, 1], [1, 1], [0, 0], [1, 1]
    if x.dim() != 3 or (y is not None and y.dim() != 3):
        raise ValueError(
            f"gram: with a 1-d kernel x and y must be [B, channels, length], got {tuple(x.shape)}"
        )
    x, y = x.unsqueeze(2), None if y is None else y.unsqueeze(2)
    return x, y, [1, *kernel], [1, *stride], [0, *padding], [1, *dilation]


@dataclass
class GramSums:
    """The accumulators of one layer. `patches` counts the columns of X that were added."""

    G: Tensor
    C: Tensor
    sum_x: Tensor
    sum_y: Tensor
    sum_yy: Tensor
    patches: int = 0

    @classmethod
    def zeros(cls, groups: int, columns: int, rows: int, device: torch.device | str = "cpu") -> GramSums:
        """Empty sums for `groups` groups of N = `columns` inputs and M = `rows` outputs."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        return cls(zeros(columns, columns), zeros(columns, rows), zeros(columns), zeros(rows), zeros(rows))

    def add(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        kernel: Sequence[int] = (),
        stride: Sequence[int] = (),
        padding: Sequence[int] = (),
        dilation: Sequence[int] = (),
        positions: Tensor | None = None,
    ) -> int:
        """Add a batch of inputs and, if given, outputs (see `gram`); returns the number of patches added.

        Without geometry the layer is linear and x is `[..., N]`, y `[..., M]`.
        """
        added = gram(
            x, y, kernel, stride, padding, dilation, self.G.shape[0], positions,
            self.G, self.C, self.sum_x, self.sum_y, self.sum_yy,
        )  # fmt: skip
        self.patches += added
        return added


@torch.library.register_fake("bitsplit::gram")
def _(x, y, kernel, stride, padding, dilation, groups, positions, G, C, sum_x, sum_y, sum_yy):
    return None
