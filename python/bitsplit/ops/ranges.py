"""Which range of the real numbers a quantizer shall cover.

Every function looks at values of float32, float64, float16 or bfloat16 in any memory format. Results do not
depend on the number of threads. `axis` is the channel axis, -1 means the whole tensor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SearchResult(NamedTuple):
    """What `lp_search` found: scale [channels], zero_point [channels] int32, error [channels] float64."""

    scale: Tensor
    zero_point: Tensor
    error: Tensor


def channel_range(x: Tensor, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every channel, in one read of x.

    Args:
        x: any shape, not empty.

    Returns:
        Both [x.shape[axis]], or [1] for axis -1, in x's dtype. A channel with a NaN gets NaN twice and
        infinities show up as they are: looking at the results tells whether all data is finite.
    """
    return torch.ops.bitsplit.channel_range(x, axis)


def grid_of_range(low: Tensor, high: Tensor, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the codes qmin..qmax stretched over [low, high], widened to hold zero.

    With qmin == -qmax the grid is symmetric around zero; otherwise zero gets the code zero_point, which is
    qmin for ranges without negative numbers. An empty range gives scale 1. `lp_search` uses the same
    formula.

    Args:
        low, high: any shape, the same for both; finite.

    Returns:
        Scale (float64 for float64 bounds, else float32) and zero_point (int32) in that shape.
    """
    dtype = torch.float64 if low.dtype == torch.float64 else torch.float32
    bottom, top = low.double().clamp(max=0), high.double().clamp(min=0)
    symmetric = qmin == -qmax
    step = torch.maximum(-bottom, top) / qmax if symmetric else (top - bottom) / (qmax - qmin)
    scale = step.clamp(min=torch.finfo(torch.float32).tiny).masked_fill(step == 0, 1).to(dtype)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    return scale, torch.round(qmin - bottom / scale).clamp(qmin, qmax).to(torch.int32)


def lp_search(
    x: Tensor,
    axis: int,
    qmin: int,
    qmax: int,
    low: Tensor,
    high: Tensor,
    candidates: int = 100,
    p: float = 2.0,
) -> SearchResult:
    """Per channel the best of the shrunken ranges [low, high] * i / candidates, i = 1..candidates.

    Best means the least sum of |x - Q(x)|^p over the channel; of equals the widest range. All candidates
    are looked at in one pass over x. With qmin == -qmax grids are symmetric, otherwise they have a zero
    point.

    Args:
        x: any shape, not empty. A channel with NaN keeps its whole range and gets error NaN.
        low, high: [channels] (or one element for all), as `channel_range` returns them; finite.
        candidates: 1 to 65536. p: positive.

    >>> x = torch.tensor([[0.0, 0.5, 1.0, 1.5], [0.0, 0.0, 0.0, 0.0]])
    >>> lp_search(x, 0, -3, 3, *channel_range(x, 0)).scale
    tensor([0.5000, 1.0000])
    """
    return SearchResult(*torch.ops.bitsplit.lp_search(x, axis, qmin, qmax, low, high, candidates, p))


EXPONENTS = 6


def power_of_two_search(
    x: Tensor, axis: int, qmin: int, qmax: int, low: Tensor, high: Tensor, p: float = 2.0
) -> SearchResult:
    """Per channel the best scale that is a power of two, under the sum of |x - Q(x)|^p.

    From the smallest that represents the whole range [low, high] on, ``EXPONENTS`` ever smaller ones; of
    equals the largest. Arguments otherwise as for `lp_search`.

    >>> x = torch.tensor([[0.0, 0.5, 1.0, 1.5], [0.0, 0.0, 0.0, 0.0]])
    >>> power_of_two_search(x, 0, -3, 3, *channel_range(x, 0)).scale
    tensor([0.5000, 1.0000])
    """
    low, high = low.double(), high.double()
    covering, _ = grid_of_range(low, high, qmin, qmax)
    mantissa, _ = torch.frexp(covering)
    widest = torch.where(mantissa == 0.5, covering, covering / mantissa)
    tried = []
    for exponent in range(EXPONENTS):
        scale = widest / 2**exponent
        stretch = scale / covering
        found = lp_search(x, axis, qmin, qmax, low * stretch, high * stretch, 1, p)
        tried.append(found._replace(scale=scale.to(found.scale.dtype)))
    scales, zero_points, errors = (torch.stack(field) for field in zip(*tried, strict=True))
    best = errors.argmin(0, keepdim=True)
    return SearchResult(*(field.gather(0, best).squeeze(0) for field in (scales, zero_points, errors)))


def alternate_scale(x: Tensor, qmin: int, qmax: int) -> Tensor:
    """Bit-Split's activation scale: codes and scale in turn until nothing changes.

    From scale = max|x| / qmax on: q = clip(round(x / scale), qmin, qmax), scale = <x, q> / <q, q>. When
    rounding makes the scales go round in a cycle, the one of least error is taken.

    Args:
        x: any shape, not empty, finite; for unsigned levels (qmin = 0) values below zero have no say.

    Returns:
        scale [1], float64 for float64 x, else float32; 1 when no level but zero can represent anything.
    """
    return torch.ops.bitsplit.alternate_scale(x, qmin, qmax)


def histogram(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    """Counts over `bins` equal cells of [low, high], int64 [bins].

    Values outside count in the first or last cell, a value on an inner edge in the upper one; NaN is not
    counted.

    Args:
        x: any shape, may be empty. bins: 1 to 8192.

    >>> histogram(torch.tensor([-5.0, 0.1, 0.5, 0.9, 7.0]), 0.0, 1.0, 2)
    tensor([2, 3])
    """
    return torch.ops.bitsplit.histogram(x, low, high, bins)


def kl_threshold(counts: Tensor, levels: int) -> int:
    """How many leading cells of a histogram of |x| to keep so that quantizing them loses least information.

    Entropy calibration as in TensorRT: P is the histogram with everything beyond the kept cells added to
    the last one, Q the kept cells merged into `levels` groups and spread again over those that are not
    empty; the number of kept cells with the least KL(P || Q) wins. The threshold is `kept * cell width`.

    Args:
        counts: int64 [bins] over |x| from 0 on. A large share of exact zeros (after a ReLU) outweighs
            everything else: leave them out.
        levels: how many levels represent |x|: 2^(b-1) signed, 2^b unsigned. At most bins.
    """
    return int(torch.ops.bitsplit.kl_threshold(counts.cpu(), levels))


@torch.library.register_fake("bitsplit::channel_range")
def _(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    channels = 1 if axis < 0 else x.shape[axis]
    return x.new_empty(channels), x.new_empty(channels)


@torch.library.register_fake("bitsplit::lp_search")
def _(
    x: Tensor, axis: int, qmin: int, qmax: int, low: Tensor, high: Tensor, candidates: int, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    channels = 1 if axis < 0 else x.shape[axis]
    dtypes = (compute_dtype(x), torch.int32, torch.float64)
    scale, zero_point, error = (x.new_empty(channels, dtype=dtype) for dtype in dtypes)
    return scale, zero_point, error


@torch.library.register_fake("bitsplit::alternate_scale")
def _(x: Tensor, qmin: int, qmax: int) -> Tensor:
    return x.new_empty(1, dtype=compute_dtype(x))


@torch.library.register_fake("bitsplit::histogram")
def _(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    return x.new_empty(bins, dtype=torch.int64)


@torch.library.register_fake("bitsplit::kl_threshold")
def _(counts: Tensor, levels: int) -> Tensor:
    return counts.new_empty(())


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
