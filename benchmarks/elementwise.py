"""Quantization and range search against torch's own operators and plain PyTorch loops.

    python benchmarks/elementwise.py [--threads 1] [--rounds 20] [--device cpu]

Every row first compares the results, then times both ways in turns and prints the best time of each and their
ratio. Activations are [4, 256, 32, 32], weights [512, 4608], samples 300,000 values.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bitsplit.ops import ranges, reference
from bitsplit.ops.quantize import fake_quantize


class Contest(NamedTuple):
    """Two ways to the same result; `agree` decides whether it is the same."""

    name: str
    ours: Callable[[], object]
    theirs: Callable[[], object]
    agree: Callable[[object, object], bool]


def mostly_equal(a: Tensor, b: Tensor) -> bool:
    """Equal but for values next to a tie: torch multiplies by the rounded inverse of the scale."""
    return bool((a != b).float().mean() < 1e-3)


def same_range(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(ours[0], theirs) for ours, theirs in zip(a, b, strict=True))


def close_errors(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return torch.allclose(a[-1], b[-1], rtol=1e-4)


def plain_search(x: Tensor, qmax: int, candidates: int, p: float) -> tuple[Tensor, Tensor]:
    """The usual loop over candidates: the whole weight once for every candidate."""
    bound = x.abs().amax(1)
    best_scale, least = bound / qmax, torch.full_like(bound, float("inf"))
    for i in range(candidates, 0, -1):
        scale = bound * (i / candidates) / qmax
        y = torch.round(x / scale[:, None]).clamp(-qmax, qmax) * scale[:, None]
        error = (x - y).abs().pow(p).sum(1)
        better = error < least
        best_scale, least = torch.where(better, scale, best_scale), torch.where(better, error, least)
    return best_scale, least.double()


def contests(device: str) -> Iterator[Contest]:
    torch.manual_seed(0)
    x = torch.randn(4, 256, 32, 32, device=device)
    scale = torch.rand(256, device=device) * 0.1 + 0.05
    zero = torch.zeros(256, dtype=torch.int32, device=device)
    for name, data in (("", x), (", channels last", x.contiguous(memory_format=torch.channels_last))):
        yield Contest(
            f"fake_quantize per channel{name}",
            lambda data=data: fake_quantize(data, scale, zero, 1, -7, 7),
            lambda data=data: torch.fake_quantize_per_channel_affine(data, scale, zero, 1, -7, 7),
            mostly_equal,
        )
    yield Contest(
        "fake_quantize per tensor",
        lambda: fake_quantize(x, scale[:1], zero[:1], -1, -7, 7),
        lambda: torch.fake_quantize_per_tensor_affine(x, scale[:1], zero[:1], -7, 7),
        mostly_equal,
    )
    yield Contest("channel_range", lambda: ranges.channel_range(x), lambda: x.aminmax(), same_range)
    yield Contest(
        "histogram",
        lambda: ranges.histogram(x, -6.0, 6.0, 2048),
        lambda: torch.histc(x, 2048, -6.0, 6.0),
        lambda a, b: bool((a - b.long()).abs().sum() < 1e-3 * x.numel()),  # cells differ by rounding only
    )
    weight = torch.randn(512, 4608, device=device)
    bounds = ranges.channel_range(weight, 0)
    for p in (2.0, 2.4):
        yield Contest(
            f"lp_search, 20 candidates, p = {p}",
            lambda p=p: ranges.lp_search(weight, 0, -7, 7, *bounds, candidates=20, p=p),
            lambda p=p: plain_search(weight, 7, 20, p),
            close_errors,
        )
    sample = torch.randn(300_000, device=device)
    for qmax in (7, 127):
        yield Contest(
            f"alternate_scale, levels to {qmax}",
            lambda qmax=qmax: ranges.alternate_scale(sample, -qmax, qmax),
            lambda qmax=qmax: reference.alternate_scale(sample, -qmax, qmax),
            lambda a, b: torch.allclose(a, b, rtol=1e-3),
        )


def seconds(function: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="times each way; the slow ones fewer")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads")
    print(f"{'':40}{'ours ms':>10}{'theirs ms':>12}{'ratio':>8}")
    for contest in contests(args.device):
        if not contest.agree(contest.ours(), contest.theirs()):
            raise SystemExit(f"{contest.name}: the results differ")
        first = seconds(contest.theirs, args.device)
        rounds = max(2, min(args.rounds, int(2 / first)))
        ours, theirs = float("inf"), first
        for _ in range(rounds):
            ours = min(ours, seconds(contest.ours, args.device))
            theirs = min(theirs, seconds(contest.theirs, args.device))
        print(f"{contest.name:40}{ours * 1e3:10.3f}{theirs * 1e3:12.3f}{theirs / ours:8.1f}")


if __name__ == "__main__":
    main()
