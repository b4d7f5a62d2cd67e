"""What the split solvers start from, and the best of several starts.

Rounding with error feedback needs a factor of G and the real-valued weights that answer best. Shapes and the
stacking of starts are those of `bitsplit.ops.split`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsplit.ops.levels import levels_of
from bitsplit.ops.split import Descent, feedback, polish
from bitsplit.ops.threads import one_thread

# Of the starts of a channel, so many with the least rounding loss are polished: with two the objective ends
# within 0.3 % of polishing all of six, for a third of the time (ResNet-20, 2 to 4 bits, after the search);
# where levels are affine, within 0.5 % of all twelve.
POLISHED_STARTS = 2

NEGLIGIBLE = 1e-4  # of the mean of a row
MOST_DAMPINGS = 12  # the last one adds 10^9 mean diagonals to a G that was damped by 1 %


def damped(gram: Tensor, damping: float | Tensor) -> Tensor:
    """G [g, N, N] with `damping` ([g] or one) times its mean diagonal (1 where that is zero) added to it."""
    level = gram.diagonal(dim1=1, dim2=2).mean(1)
    level = torch.where(level > 0, level * damping, torch.ones_like(level))
    result = gram.clone()
    result.diagonal(dim1=1, dim2=2).add_(level[:, None])
    return result


@one_thread()
def feedback_factor(gram: Tensor, damping: float = 0.01) -> Tensor:
    """Upper triangular U [g, N, N] with U U^T = damped G: what `feedback` and `response_target` need.

    The order of factors matters: coordinate n answers the errors of coordinates 0..n-1 by column n of U.
    Where rounding has left G indefinite even when damped (inputs that hardly vary, seen centred), the damping
    of that group grows tenfold until it is not.
    """
    level = torch.full(gram.shape[:1], damping, dtype=gram.dtype, device=gram.device)
    for _ in range(MOST_DAMPINGS):
        reversed_lower, failed = torch.linalg.cholesky_ex(damped(gram, level).flip(1, 2))
        if not failed.any():
            return reversed_lower.flip(1, 2)
        level = torch.where(failed > 0, 10 * level, level)
    raise ValueError("gram is not a matrix of second moments: no damping makes it positive definite")


@one_thread()
def response_target(weight: Tensor, gram: Tensor, cross: Tensor, factor: Tensor) -> Tensor:
    """The real-valued weights that answer best, W + (C^T - W G) (damped G)^-1: [g, M, N], dtype of factor.

    Args:
        weight: [g, M, N]. gram: [g, N, N]. cross: [g, N, M]. factor: [g, N, N], from `feedback_factor`.
    """
    weight, gram, cross = (tensor.to(factor.dtype) for tensor in (weight, gram, cross))
    mismatch = cross - gram @ weight.transpose(1, 2)
    inner = torch.linalg.solve_triangular(factor, mismatch, upper=True)
    return weight + torch.linalg.solve_triangular(factor.mT, inner, upper=False).transpose(1, 2)


def influential(weight: Tensor, gram: Tensor) -> Tensor:
    """The weight [g, M, N] without entries that hardly move the response.

    Large weights of inputs that are never or hardly active must not decide about the scale of a row.
    """
    share = weight.square() * gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    return weight.where(share >= NEGLIGIBLE * share.mean(2, keepdim=True), 0)


def best_of(descent: Descent, channels: int) -> Descent:
    """The best of the starts stacked in `descent` (R = S * channels) per channel; the first of equals."""
    winner = descent.explained.unflatten(1, (-1, channels)).argmax(1, keepdim=True)
    return Descent(*(_of_starts(field, winner) for field in descent))


def _of_starts(stacked: Tensor, start: Tensor) -> Tensor:
    """Of a field [g, S*M, ...] the rows of the starts [g, K, M] named for every channel: [g, K*M, ...]."""
    channels = start.shape[2]
    row = (start * channels + torch.arange(channels, device=start.device)).flatten(1)
    if stacked.dim() == 3:
        return stacked.gather(1, row[:, :, None].expand(-1, -1, stacked.shape[2]))
    return stacked.gather(1, row)


def solve_starts(
    target: Tensor,
    scale: Tensor,
    gram: Tensor,
    cross: Tensor,
    factor: Tensor,
    choices: Sequence[tuple[int, int]],
    rounds: int = 100,
    fit_scale: bool = True,
) -> Descent:
    """Round `target` with feedback from every start, polish the most promising, keep the best per channel.

    Args:
        target: [g, M, N]. scale: [g, S, M] float64. gram: [g, N, N]. cross: [g, N, M], its dtype is the one
            computed in. factor: [g, N, N], from `feedback_factor`. choices: levels that a row may have. Every
            scale with every choice is a start. fit_scale: as for `polish`.

    Returns:
        The best start of every channel, rows = M.
    """
    scale, levels = every_start(scale, choices)
    codes, scale, levels = round_starts(target.to(cross.dtype), scale, factor, levels, POLISHED_STARTS)
    return best_of(polish(codes, scale, gram, cross, levels, rounds, fit_scale), target.shape[1])


def every_start(scale: Tensor, choices: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Every scale of [g, S, M] with every choice of levels: scale [g, R] and levels [g, R, 2]."""
    scale = scale.repeat(1, len(choices), 1).flatten(1)
    return scale, levels_of(choices, scale)


def round_starts(
    target: Tensor, scale: Tensor, factor: Tensor, levels: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Round `target` with feedback from every start: codes, scale and levels of the `keep` best of a channel.

    Arguments as for `feedback`.
    """
    codes, loss = feedback(target, scale, factor, levels)
    by_start = loss.unflatten(1, (-1, target.shape[1]))
    promising = by_start.argsort(stable=True, dim=1)[:, :keep]
    return tuple(_of_starts(field, promising) for field in (codes, scale, levels))
