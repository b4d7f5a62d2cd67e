"""From ranges to scales and zero points, and from values to codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bitsplit.methods.tasks import LayerTask
from bitsplit.ops.ranges import SearchResult, lp_search, power_of_two_search
from bitsplit.quantizers import Grid
from bitsplit.quantizers.powers import power_by_distance

MOST_ROUNDS = 1000  # they end by themselves; a bound in case two codings tie for ever


def best_range(
    x: Tensor, axis: int, grid: Grid, low: Tensor, high: Tensor, candidates: int, p: float
) -> SearchResult:
    """Of the scales that ``grid`` allows for every channel of x, that of least sum of |x - Q(x)|^p."""
    if grid.power_of_two:
        return power_of_two_search(x, axis, grid.low, grid.high, low, high, p)
    return lp_search(x, axis, grid.low, grid.high, low, high, candidates, p)


def rows_of(task: LayerTask) -> Tensor:
    """The weights [R, N] of a layer that have a scale of their own: of every channel, or all in one row."""
    rows = task.weight.flatten(0, 1)
    return rows.reshape(1, -1) if task.weight_grid.per_tensor else rows


def store_nearest(task: LayerTask, scale: Tensor, zero_point: Tensor) -> None:
    """Give a layer the codes nearest to its weights, ties to the even level.

    Scale and zero point: [R], of its ``rows_of``; the scale is moved to a power of two where the grid wants
    one.
    """
    grid, shape = task.weight_grid, task.weight.shape[:2]
    scale, zero_point = (values.expand(shape.numel()) for values in grid.allowed(scale, zero_point))
    zero = zero_point.view(*shape, 1)
    codes = torch.round(task.weight / scale.view(*shape, 1)) + zero
    task.store(codes.clamp(grid.low, grid.high), scale, zero_point)


def store_levels(task: LayerTask, levels: Tensor, scale: Tensor, bounds: Tensor) -> None:
    """Give a layer the levels [g, M, N] of rows whose lowest and highest ones are ``bounds`` [g, M, 2]."""
    zero_point = task.weight_grid.low - bounds[:, :, 0].to(torch.int16)
    task.store(levels + zero_point.unsqueeze(2), scale, zero_point)


def nearest_levels(
    weight: Tensor, choices: Sequence[tuple[int, int]], power_of_two: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest levels and their best scale in turn until no level moves: of every row the best choice.

    Args:
        weight: [g, M, N].  choices: lowest and highest level that a row may have, low < 0 < high.
        power_of_two: scales are the best among these.

    Returns:
        Levels [g, M, N] int8, scale [g, M] float64, and the bounds [g, M, 2] that were chosen.
    """
    weight = weight.double()
    fits = [_alternate(weight, low, high, power_of_two) for low, high in choices]
    errors = torch.stack([(weight - scale.unsqueeze(2) * levels).square().sum(2) for levels, scale in fits])
    best = errors.argmin(0)
    bounds = torch.tensor(choices, device=weight.device)[best]
    levels, scale = fits[0]
    for number, (other_levels, other_scale) in enumerate(fits[1:], start=1):
        levels = torch.where((best == number).unsqueeze(2), other_levels, levels)
        scale = torch.where(best == number, other_scale, scale)
    return levels, scale, bounds


def _alternate(weight: Tensor, low: int, high: int, power_of_two: bool) -> tuple[Tensor, Tensor]:
    """From the smallest scale that clips nothing on; a row of zeros gets levels 0 and scale 1."""
    widest = torch.maximum(weight.amax(2) / high, weight.amin(2) / low)
    scale = widest.where(widest >= torch.finfo(torch.float64).tiny, 1)
    levels = torch.zeros_like(weight)
    for _ in range(MOST_ROUNDS):
        before, levels = levels, torch.round(weight / scale.unsqueeze(2)).clamp(low, high)
        if torch.equal(levels, before):
            break
        answered = (weight * levels).sum(2)
        scale = torch.where(answered > 0, answered / levels.square().sum(2), scale)
        if power_of_two:
            scale = power_by_distance(scale)
    return levels.to(torch.int8), scale
