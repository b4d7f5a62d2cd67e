"""The split solvers: integers and one scale per output channel, from weights or from second moments.

A layer in matrix form is `weight` [g, M, N]; its inputs are only seen through G = X X^T (`gram` [g, N, N],
symmetric) and C = X Y^T (`cross` [g, N, M]). Codes are int8, scales float64. The dtype of weight, target or
cross (float32 or float64) is the one computed in; gram and factor may be wider.

`fwa`, `ofwa` and `planes` work on the signed symmetric grid: codes of at most 2^(bits-1) - 1 in size.
`polish`, `search` and `feedback` take `levels` [g, R, 2] int8, the lowest and the highest code of every row,
zero among them, which `bitsplit.ops.levels` makes.

Several starts are solved in one call by stacking them along the rows: codes [g, S*M, N] and scales [g, S*M],
where row r belongs to channel r mod M. Rows never influence one another, so stacking changes no result, and
neither does the number of threads. `best_of` then keeps the best start of every channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bitsplit.ops.levels import level_choices, levels_of
from bitsplit.ops.threads import one_thread

# Of the starts of a channel, so many with the least rounding loss are polished: with two the objective ends
# within 0.3 % of polishing all of six, for a third of the time (ResNet-20, 2 to 4 bits, after the search);
# where levels are affine, within 0.5 % of all twelve.
POLISHED_STARTS = 2

NEGLIGIBLE = 1e-4  # of the mean of a row
MOST_DAMPINGS = 12  # the last one adds 10^9 mean diagonals to a G that was damped by 1 %


class Descent(NamedTuple):
    """What a descent over the response returns.

    codes [g, R, N] int8 and scale [g, R].
    levels [g, R, 2] int8: those that the codes are taken from.
    explained [g, R]: what the fit takes off the energy of the response, objective = sum(y^2) - explained.
    rounds [g, R] int64: sweeps used, the idle last one included.
    """

    codes: Tensor
    scale: Tensor
    explained: Tensor
    rounds: Tensor
    levels: Tensor


def fwa(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Fit codes and scale to the weight itself: nearest codes and best scale in turn until the codes stand.

    Args:
        weight: [g, M, N], float32 or float64.
        bits: 2 to 8.

    Returns:
        Codes [g, M, N] int8 and scale [g, M] float64; an all-zero row gets codes 0 and scale 1.
    """
    return torch.ops.bitsplit.fwa(weight, bits)


def ofwa(weight: Tensor, codes: Tensor, scale: Tensor, bits: int, rounds: int = 50) -> tuple[Tensor, Tensor]:
    """Improve a weight-space fit by alternating over bit planes (the paper's second step).

    Args:
        weight: [g, M, N]. codes: [g, M, N] int8. scale: [g, M] float64.
        rounds: at most so many alternations.

    Returns:
        Codes and scale. After `fwa` they hardly ever differ from the arguments.
    """
    return torch.ops.bitsplit.ofwa(weight, codes, scale, bits, rounds)


def planes(
    codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, bits: int, rounds: int = 100
) -> Descent:
    """Minimise the response error over bit planes: the scale and, plane by plane, every digit in turn.

    Args:
        codes: [g, R, N] int8, the start; R a multiple of M.
        scale: [g, R] float64, used until one can be fitted.
        gram: [g, N, N]. cross: [g, N, M].
        rounds: at most so many sweeps; a row stops earlier at its fixed point.
    """
    found = torch.ops.bitsplit.planes(codes, scale, gram, cross, bits, rounds)
    return Descent(*found, levels_of(level_choices(bits), scale))


def polish(
    codes: Tensor,
    scale: Tensor,
    gram: Tensor,
    cross: Tensor,
    levels: Tensor,
    rounds: int = 100,
    fit_scale: bool = True,
) -> Descent:
    """Minimise the response error over all levels: the scale and every code in turn.

    Arguments as for `planes`, whose fixed points it can only improve, but levels [g, R, 2] of every row.
    Without `fit_scale` every row keeps its scale.
    """
    return Descent(*torch.ops.bitsplit.polish(codes, scale, gram, cross, levels, rounds, fit_scale), levels)


def search(
    codes: Tensor,
    scale: Tensor,
    gram: Tensor,
    cross: Tensor,
    levels: Tensor,
    steps: int,
    seed: int = 0,
    fit_scale: bool = True,
) -> Descent:
    """Look for better codes around a fixed point: one code a step, the best move even if it is a loss.

    A tabu search: a code that moved rests for a few steps, and every so often the search goes back to the
    best codes and moves a few at random. The scale is the best one throughout, or the given one.

    Args:
        codes, scale, gram, cross, levels, fit_scale: as for `polish`.
        steps: so many for every row.
        seed: decides the random moves, together with group and channel.

    Returns:
        The best codes met, not necessarily a fixed point of `polish`.
    """
    found = torch.ops.bitsplit.search(codes, scale, gram, cross, levels, steps, seed, fit_scale)
    return Descent(*found, levels)


def feedback(target: Tensor, scale: Tensor, factor: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Round coordinate after coordinate, later ones making good for the errors of earlier ones.

    Args:
        target: [g, M, N], the real-valued weights to approach. scale: [g, R] float64, R a multiple of M.
        factor: [g, N, N], from `feedback_factor`. levels: [g, R, 2].

    Returns:
        Codes [g, R, N] int8, and the loss [g, R] float64: e damped(G) e, e = target - scale * codes.
    """
    return torch.ops.bitsplit.feedback(target, scale, factor, levels)


def objective(codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, energy: Tensor) -> Tensor:
    """The response error of every row, energy - 2 s q.c + s^2 q G q, in float64.

    Args:
        codes: [g, R, N] int8. scale: [g, R] float64. gram: [g, N, N]. cross: [g, N, M].
        energy: [g, M] float64, sum(y^2) of every channel.

    Returns:
        [g, R] float64.
    """
    return torch.ops.bitsplit.objective(codes, scale, gram, cross, energy)


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


@torch.library.register_fake("bitsplit::fwa")
def _(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape, dtype=torch.int8), weight.new_empty(
        weight.shape[:2], dtype=torch.float64
    )


@torch.library.register_fake("bitsplit::ofwa")
def _(weight: Tensor, codes: Tensor, scale: Tensor, bits: int, rounds: int) -> tuple[Tensor, Tensor]:
    return codes.new_empty(codes.shape), scale.new_empty(scale.shape)


def _fake_descent(codes: Tensor, scale: Tensor, *_: object) -> tuple[Tensor, ...]:
    fields = (
        scale.new_empty(scale.shape, dtype=dtype) for dtype in (torch.float64, torch.float64, torch.int64)
    )
    return codes.new_empty(codes.shape), *fields


torch.library.register_fake("bitsplit::planes", _fake_descent)
torch.library.register_fake("bitsplit::polish", _fake_descent)
torch.library.register_fake("bitsplit::search", _fake_descent)


@torch.library.register_fake("bitsplit::feedback")
def _(target: Tensor, scale: Tensor, factor: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    codes = target.new_empty((*scale.shape, target.shape[2]), dtype=torch.int8)
    return codes, scale.new_empty(scale.shape)


@torch.library.register_fake("bitsplit::objective")
def _(codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, energy: Tensor) -> Tensor:
    return scale.new_empty(scale.shape)
