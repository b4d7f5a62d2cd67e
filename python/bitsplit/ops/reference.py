"""Readable PyTorch versions of the operators in `quantize` and `ranges`: what they compute, written plainly.

Slow, and meant to be read and compared with. Arguments and results are those of the operators of that name.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _channel_shape(x: Tensor, axis: int) -> list[int]:
    """The shape in which one number per channel broadcasts against x."""
    shape = [1] * x.dim()
    if axis >= 0:
        shape[axis] = -1
    return shape


def _codes(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Unclamped codes of x as floats, and scale and zero point shaped like x's channels."""
    wide = x if x.dtype == torch.float64 else x.float()
    shape = _channel_shape(x, axis if scale.numel() > 1 else -1)
    scale, zero_point = scale.to(wide.dtype).reshape(shape), zero_point.to(wide.dtype).reshape(shape)
    return torch.round(wide / scale) + zero_point, scale, zero_point


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    """The representable value nearest to every element of x; gradients pass inside the range."""
    codes, scale, zero_point = _codes(x.detach(), scale, zero_point, axis, qmin, qmax)
    values = ((codes.clamp(qmin, qmax) - zero_point) * scale).to(x.dtype)
    inside = (codes >= qmin) & (codes <= qmax)
    return torch.where(inside, x - x.detach(), 0) + values if x.requires_grad else values


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int) -> Tensor:
    """The integer code of every element of x; NaN gets the code of zero."""
    codes, _, zero_point = _codes(x, scale, zero_point, axis, qmin, qmax)
    codes = torch.where(codes.isnan(), zero_point, codes.clamp(qmin, qmax))
    return codes.to(torch.int8 if qmin < 0 else torch.uint8)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """The value of every code."""
    shape = _channel_shape(codes, axis if scale.numel() > 1 else -1)
    return (codes.int() - zero_point.reshape(shape)) * scale.reshape(shape)


def _rows(x: Tensor, axis: int) -> Tensor:
    """x as [channels, values]."""
    return x.reshape(1, -1) if axis < 0 else x.movedim(axis, 0).reshape(x.shape[axis], -1)


def channel_range(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every channel; NaN where there is one."""
    rows = _rows(x, axis)
    return rows.amin(1), rows.amax(1)


def histogram(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Counts over equal cells of [low, high]; values outside count in the first or last cell, NaN nowhere."""
    wide = x if x.dtype == torch.float64 else x.float()
    low_in_dtype, cells_per_unit = (wide.new_tensor(v) for v in (low, bins / (high - low)))
    position = (wide[~wide.isnan()] - low_in_dtype) * cells_per_unit
    return torch.bincount(position.clamp(0, bins - 1).long().flatten(), minlength=bins)


def grid_of_range(low: float, high: float, qmin: int, qmax: int) -> tuple[float, int]:
    """Scale (a float32 number) and zero point of codes qmin..qmax over [low, high], widened to hold zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    symmetric = qmin == -qmax
    step = max(-low, high) / qmax if symmetric else (high - low) / (qmax - qmin)
    smallest = torch.finfo(torch.float32).tiny
    scale = torch.tensor(1.0 if step == 0 else max(step, smallest), dtype=torch.float32).item()
    return scale, 0 if symmetric else min(max(round(qmin - low / scale), qmin), qmax)


def lp_search(
    x: Tensor, axis: int, qmin: int, qmax: int, low: Tensor, high: Tensor, candidates: int, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One channel and one candidate after the other, the widest range first. For float32 x and narrower."""
    found = []
    bounds = zip(low.double().tolist(), high.double().tolist(), strict=True)
    for row, (bottom, top) in zip(_rows(x, axis).float(), bounds, strict=True):
        best: tuple[float, int, float] | None = None
        for i in range(candidates, 0, -1):
            scale, zero_point = grid_of_range(bottom * i / candidates, top * i / candidates, qmin, qmax)
            grid = row.new_tensor([scale]), torch.tensor([zero_point], device=row.device)
            error = (row - fake_quantize(row, *grid, -1, qmin, qmax)).double().abs().pow(p).sum().item()
            if best is None or error < best[2]:
                best = scale, zero_point, error
        found.append(best)
    scales, zero_points, errors = zip(*found, strict=True)
    return (
        torch.tensor(scales, dtype=torch.float32, device=x.device),
        torch.tensor(zero_points, dtype=torch.int32, device=x.device),
        torch.tensor(errors, dtype=torch.float64, device=x.device),
    )


def alternate_scale(x: Tensor, qmin: int, qmax: int) -> Tensor:
    """Codes and scale in turn, one pass over x each, until a scale returns. For float32 x."""
    low, high = x.min(), x.max()
    scale = torch.maximum(high / qmax, low / qmin) if qmin < 0 else high / qmax
    if not scale > 0:
        return torch.ones(1, device=x.device)
    errors: dict[float, float] = {}
    while scale.item() not in errors:
        q = torch.round(x / scale).clamp(qmin, qmax).double()
        errors[scale.item()] = (x.double() - scale.double() * q).square().sum().item()
        scale = ((x.double() * q).sum() / q.square().sum()).float()
    visited = list(errors)
    cycle = visited[visited.index(scale.item()) :]
    return scale.new_tensor([min(cycle, key=errors.__getitem__)])


def kl_threshold(counts: Tensor, levels: int) -> int:
    """Every number of kept cells after the other, the largest first; the distributions are spelled out."""
    best, least = counts.numel(), float("inf")
    for kept in range(counts.numel(), levels - 1, -1):
        divergence = kl_divergence(counts, kept, levels)
        if divergence < least:
            best, least = kept, divergence
    return best


def kl_divergence(counts: Tensor, kept: int, levels: int) -> float:
    """KL(P || Q) of the histogram clipped to `kept` cells and its version in `levels` groups."""
    inside = counts[:kept].double()
    p = inside.clone()
    p[-1] += counts[kept:].sum()
    q = torch.zeros_like(p)
    group = torch.arange(kept) * levels // kept
    for g in range(levels):
        filled = (group == g) & (p > 0)
        q[filled] = inside[group == g].sum() / max(int(filled.sum()), 1)
    if q.sum() == 0:
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    filled = p > 0
    return (p[filled] * (p[filled] / q[filled]).log()).sum().item()
