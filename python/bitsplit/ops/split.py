"""The split solvers: integers and one scale per output channel, from weights or from second moments.

A layer in matrix form is `weight` [g, M, N]; its inputs are only seen through G = X X^T (`gram` [g, N, N],
symmetric) and C = X Y^T (`cross` [g, N, M]). Codes are int8, scales float64. The dtype of weight, target or
cross (float32 or float64) is the one computed in; gram and factor may be wider.

`fwa`, `ofwa` and `planes` work on the signed symmetric grid: codes of at most 2^(bits-1) - 1 in size.
`polish`, `search` and `feedback` take `levels` [g, R, 2] int8, the lowest and the highest code of every row,
zero among them, which `bitsplit.ops.levels` makes.

Several starts are solved in one call by stacking them along the rows: codes [g, S*M, N] and scales [g, S*M],
where row r belongs to channel r mod M. Rows never influence one another: on the CPU neither stacking nor the
number of threads changes a result; on a card, where large products are cuBLAS's, stacking may change the last
places. `bitsplit.ops.starts` makes such stacks and keeps the best of every channel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitsplit.ops.levels import level_choices, levels_of


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
