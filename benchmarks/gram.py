"""Layer statistics (G, C, sums) against the obvious way, F.unfold and a float32 matmul, on real layer shapes.

    python benchmarks/gram.py [--threads 1] [--seconds 1.0] [--device cpu] [--only NAME]

Each row first checks both ways against float64 on two images, then times them in turns and prints the best
time of each, so that the ratio holds on a busy machine too. GFLOP/s counts half of X Xᵀ and all of X Yᵀ;
sharing products between taps lets it exceed what the machine can compute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bitsplit.ops.gram import GramSums


@dataclass(frozen=True)
class Case:
    name: str
    images: int
    channels: int
    rows: int
    size: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def columns(self) -> int:
        return self.channels // self.groups * self.kernel**2

    @property
    def geometry(self) -> dict[str, int]:
        return {"stride": self.stride, "padding": self.kernel // 2}

    @property
    def out(self) -> int:
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    @property
    def flops(self) -> float:
        """Half of X Xᵀ and all of X Yᵀ."""
        patches = self.images * self.out**2
        return patches * self.groups * self.columns * (self.columns + 1 + 2 * self.rows // self.groups)

    def batch(self, images: int, device: str) -> tuple[Tensor, Tensor]:
        x = torch.randn(images, self.channels, self.size, self.size, device=device).relu_()
        return x, torch.randn(images, self.rows, self.out, self.out, device=device)


CASES = [
    Case("CIFAR ResNet-20 first", 128, 3, 16, 32, 3),
    Case("CIFAR ResNet-20 stage 1", 128, 16, 16, 32, 3),
    Case("CIFAR ResNet-20 stage 2", 128, 32, 32, 16, 3),
    Case("CIFAR ResNet-20 stage 2, stride 2", 128, 16, 32, 32, 3, stride=2),
    Case("CIFAR ResNet-20 stage 3", 128, 64, 64, 8, 3),
    Case("ResNet-18 first", 16, 3, 64, 224, 7, stride=2),
    Case("ResNet-18 layer1", 32, 64, 64, 56, 3),
    Case("ResNet-18 layer2, stride 2", 32, 64, 128, 56, 3, stride=2),
    Case("ResNet-18 layer4", 32, 512, 512, 7, 3),
    Case("ResNet-50 layer1 1x1", 32, 256, 64, 56, 1),
    Case("ResNet-50 layer4 1x1", 32, 2048, 512, 7, 1),
    Case("MobileNetV2 depthwise 3x3", 32, 144, 144, 56, 3, groups=144),
    Case("MobileNetV2 depthwise 3x3, stride 2", 32, 144, 144, 56, 3, stride=2, groups=144),
    Case("MobileNetV3 depthwise 5x5", 32, 240, 240, 28, 5, groups=240),
    Case("ResNeXt-50 3x3, 32 groups", 32, 128, 128, 56, 3, groups=32),
    Case("classifier", 256, 2048, 1000, 1, 1),
]


def ours(case: Case, x: Tensor, y: Tensor, sums: GramSums) -> None:
    pair = [case.kernel] * 2
    sums.add(x, y, kernel=pair, stride=[case.stride] * 2, padding=[case.kernel // 2] * 2, dilation=[1, 1])


def obvious(case: Case, x: Tensor, y: Tensor, sums: GramSums) -> None:
    """Unfold the batch, multiply in x's dtype, add in float64."""
    columns = F.unfold(x, case.kernel, **case.geometry) if case.kernel > 1 else x.flatten(2)
    columns = columns.unflatten(1, (case.groups, -1)).permute(1, 2, 0, 3).flatten(2)
    outputs = y.flatten(2).unflatten(1, (case.groups, -1)).permute(1, 2, 0, 3).flatten(2)
    sums.G += columns @ columns.mT
    sums.C += columns @ outputs.mT
    sums.sum_x += columns.sum(-1)
    sums.sum_y += outputs.sum(-1)
    sums.sum_yy += outputs.square().sum(-1)


def check(case: Case, device: str) -> None:
    """Both ways within 2e-6 of float64 on two images, relative to the largest value."""
    x, y = case.batch(2, device)
    exact = empty(case, device)
    obvious(case, x.double(), y.double(), exact)
    for way in (ours, obvious):
        sums = empty(case, device)
        way(case, x, y, sums)
        for name in ("G", "C", "sum_x", "sum_y", "sum_yy"):
            truth = getattr(exact, name)
            scale = (
                exact.G.abs().max().sqrt() * exact.sum_yy.max().sqrt() if name == "C" else truth.abs().max()
            )
            error = ((getattr(sums, name) - truth).abs().max() / scale).item()
            if not error < 2e-6 and name != "sum_y":
                raise AssertionError(f"{case.name}: {way.__name__} {name} is off by {error:.1e}")


def empty(case: Case, device: str) -> GramSums:
    return GramSums.zeros(case.groups, case.columns, case.rows // case.groups, device)


def seconds(run: Callable[[], None], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(case: Case, device: str, budget: float) -> None:
    x, y = case.batch(case.images, device)
    sums = empty(case, device)
    best = {ours: float("inf"), obvious: float("inf")}
    end = time.perf_counter() + budget
    turns = 0
    while turns < 2 or time.perf_counter() < end:
        for way in best:
            best[way] = min(best[way], seconds(lambda way=way: way(case, x, y, sums), device))
        turns += 1
    fast, slow = best[ours], best[obvious]
    patches = case.out**2 * case.images
    print(
        f"{case.name:<36}{case.columns:>6}{patches:>9}{1e3 * fast:>10.2f}{1e3 * slow:>11.2f}"
        f"{slow / fast:>8.1f}x{case.flops / fast / 1e9:>9.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="time to spend on a row")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{'layer':<36}{'N':>6}{'patches':>9}{'ours ms':>10}{'unfold ms':>11}{'ratio':>9}{'GFLOP/s':>9}")
    for case in CASES:
        if arguments.only in case.name:
            check(case, arguments.device)
            measure(case, arguments.device, arguments.seconds)


if __name__ == "__main__":
    main()
