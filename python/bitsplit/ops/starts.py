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

LEAST_GAIN = 1e-6  # of what a scale for all rows explains: less is rounding
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


def best_of(descent: Descent, channels: int, together: bool = False) -> Descent:
    """The best of the starts stacked in `descent` (R = S * channels) per channel; the first of equals.

    together: the best one for the sum of all channels.
    """
    winner = _by_start(descent.explained, channels, together).argmax(1, keepdim=True)
    return Descent(*(_of_starts(field, winner) for field in descent))


def _by_start(values: Tensor, channels: int, together: bool) -> Tensor:
    """[g, S * channels] as [g, S, channels]; with `together` the sums of all channels, in each of them."""
    starts = values.unflatten(1, (-1, channels))
    return starts.sum((0, 2), keepdim=True).expand_as(starts) if together else starts


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
    together: bool = False,
) -> Descent:
    """Round `target` with feedback from every start, polish the most promising, keep the best per channel.

    Args:
        target: [g, M, N]. scale: [g, S, M] float64. gram: [g, N, N]. cross: [g, N, M], its dtype is the one
            computed in. factor: [g, N, N], from `feedback_factor`. choices: levels that a row may have. Every
            scale with every choice is a start. fit_scale: as for `polish`. together: all channels take the
            same start.

    Returns:
        The best start of every channel, rows = M.
    """
    scale, levels = every_start(scale, choices)
    rounded = round_starts(target.to(cross.dtype), scale, factor, levels, POLISHED_STARTS, together)
    codes, scale, levels = rounded
    return best_of(polish(codes, scale, gram, cross, levels, rounds, fit_scale), target.shape[1], together)


@one_thread()
def polish_together(found: Descent, gram: Tensor, cross: Tensor, rounds: int) -> Descent:
    """Polish rows that share a scale: the best scale for all codes, and all codes, in turn while it helps."""
    squares, products = gram.double(), cross.double().transpose(1, 2)
    for _ in range(rounds):
        codes = found.codes.double()
        scale = (codes * products).sum() / ((codes @ squares) * codes).sum()
        if not (torch.isfinite(scale) and scale > 0):
            return found
        scales = scale.expand_as(found.scale).contiguous()
        better = polish(found.codes, scales, gram, cross, found.levels, rounds, fit_scale=False)
        if not better.explained.sum() > found.explained.sum() * (1 + LEAST_GAIN):
            return found
        found = better
    return found


def every_start(scale: Tensor, choices: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Every scale of [g, S, M] with every choice of levels: scale [g, R] and levels [g, R, 2]."""
    scale = scale.repeat(1, len(choices), 1).flatten(1)
    return scale, levels_of(choices, scale)


def round_starts(
    target: Tensor, scale: Tensor, factor: Tensor, levels: Tensor, keep: int, together: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Round `target` with feedback from every start: codes, scale and levels of the `keep` best of a channel.

    Arguments as for `feedback`.  together: as for `solve_starts`.
    """
    codes, loss = feedback(target, scale, factor, levels)
    promising = _by_start(loss, target.shape[1], together).argsort(stable=True, dim=1)[:, :keep]
    return tuple(_of_starts(field, promising) for field in (codes, scale, levels))
