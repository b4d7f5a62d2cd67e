"""Time of one iteration of block reconstruction, against the bare block and against plain autograd.

    python benchmarks/reconstruction.py [--threads 1] [--rounds 3] [--device cpu] [--only 64x56x56]
        [--precision auto]

One residual block (two 3x3 convolutions), 32 rows an iteration. *bare*: forward and backward of the float
block, gradients of its weights included (and, for QDrop, which needs it, of its input), in the faster of both
memory formats. *plain*: the same method as modules and autograd, the way the papers' codes are written: the
quantized weight is an expression of the float weight in every forward, so is the regulariser; torch's Adam.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitsplit

ROWS = 32
FEATURES = 128
WARM_UP = 8  # iterations of ours: the first ones take memory from the system that all others use again


class Block(nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(F.relu(self.one(x))) + x)


@dataclass(frozen=True)
class Case:
    name: str
    channels: int
    size: int
    iterations: int

    def inputs(self, device: str) -> Tensor:
        return torch.rand(FEATURES, self.channels, self.size, self.size, device=device)


CASES = [
    Case("ResNet-20, 16x32x32", 16, 32, 60),
    Case("ResNet-20, 32x16x16", 32, 16, 60),
    Case("ResNet-20, 64x8x8", 64, 8, 60),
    Case("ResNet-18, 64x56x56", 64, 56, 16),
    Case("ResNet-18, 512x7x7", 512, 7, 16),
]


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[int], None], iterations: int, device: str) -> float:
    """Of one iteration; a first run warms up."""
    work(2)
    synchronize(device)
    started = time.perf_counter()
    work(iterations)
    synchronize(device)
    return (time.perf_counter() - started) / iterations


def bare(case: Case, device: str, of_input: bool) -> float:
    """Forward and backward of the float block, the better memory format."""
    times = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        block = Block(case.channels).to(device, memory_format=memory_format)
        x = case.inputs(device)[:ROWS].contiguous(memory_format=memory_format)
        x.requires_grad_(of_input)
        grad = torch.rand_like(x)

        def work(iterations: int, block: nn.Module = block, x: Tensor = x, grad: Tensor = grad) -> None:
            for _ in range(iterations):
                for tensor in (x, *block.parameters()):
                    tensor.grad = None
                block(x).backward(grad)

        times.append(seconds(work, case.iterations, device))
    return min(times)


class PlainConv(nn.Conv2d):
    """A convolution whose rounding is learned, and whose input may be quantized with a learned step."""

    def prepare(self, bits: int, activations: int | None, drop: float) -> None:
        weight, self.levels = self.weight.detach(), 2**bits
        low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
        self.scale = (high - low) / (self.levels - 1)
        self.zero = (-low / self.scale).round()
        rest = (weight / self.scale - torch.floor(weight / self.scale)).clamp(0.001, 0.999)
        self.v = nn.Parameter(torch.logit((rest + 0.1) / 1.2))
        self.high = None if activations is None else 2**activations - 1
        self.step = nn.Parameter(torch.tensor(1.0 / (self.high or 1), device=weight.device))
        self.drop = drop

    def h(self) -> Tensor:
        return torch.clamp(torch.sigmoid(self.v) * 1.2 - 0.1, 0, 1)

    def quantized(self, x: Tensor) -> Tensor:
        codes = x / self.step
        codes = torch.clamp((codes.round() - codes).detach() + codes, 0, self.high)
        quantized = codes * self.step
        return torch.where(torch.rand_like(x) < self.drop, quantized, x) if self.drop < 1 else quantized

    def forward(self, x: Tensor) -> Tensor:
        if self.high is not None:
            x = self.quantized(x)
        codes = torch.clamp(torch.floor(self.weight / self.scale) + self.h() + self.zero, 0, self.levels - 1)
        return self._conv_forward(x, (codes - self.zero) * self.scale, self.bias)


def plain(case: Case, device: str, activations: int | None) -> float:
    """The method as an ordinary training loop."""
    block = Block(case.channels).to(device)
    teacher, x = copy.deepcopy(block), case.inputs(device)
    for conv in (block.one, block.two):
        conv.__class__ = PlainConv
        conv.prepare(3, activations, 1.0 if activations is None else 0.5)
    with torch.no_grad():
        target = teacher(x)
        noisy = x + 0.01 * torch.randn_like(x)
    work = learn_plainly(block, [block.one, block.two], x, noisy, target, activations)
    return seconds(work, case.iterations, device)


def learn_plainly(
    block: nn.Module,
    convs: list[PlainConv],
    x: Tensor,
    noisy: Tensor,
    target: Tensor,
    activations: int | None,
) -> Callable[[int], None]:
    """So many iterations of the training loop."""
    optimizer = torch.optim.Adam([conv.v for conv in convs])
    steps = torch.optim.Adam([conv.step for conv in convs], lr=4e-5)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(steps, 20_000)

    def work(iterations: int) -> None:
        for _ in range(iterations):
            rows = torch.randperm(len(x))[:ROWS].to(x.device)
            chosen, wanted = noisy[rows], target[rows]
            if activations is not None:
                chosen = torch.where(torch.rand_like(chosen) < 0.5, chosen, x[rows])
            optimizer.zero_grad()
            steps.zero_grad()
            loss = (block(chosen) - wanted).abs().pow(2).sum(1).mean()
            for conv in convs:
                loss = loss + 0.01 * (1 - (2 * conv.h() - 1).abs().pow(5.0)).sum()
            loss.backward()
            optimizer.step()
            if activations is not None:
                steps.step()
                rates.step()

    return work


def ours(case: Case, device: str, activations: int | None, precision: str) -> float:
    """From the report's seconds of two runs that differ in the number of iterations."""
    torch.manual_seed(0)
    network = nn.Sequential(Block(case.channels)).to(device).eval()
    x = case.inputs(device)

    def spent(iterations: int) -> float:
        method = (
            bitsplit.Brecq(iterations=iterations, step_iterations=0, precision=precision)
            if activations is None
            else bitsplit.QDrop(iterations=iterations, precision=precision)
        )
        learned = bitsplit.quantize(
            network, x, method, weights=3, activations=activations, policy="all", batch_size=ROWS
        )
        return next(piece.seconds for piece in bitsplit.report_of(learned).pieces)

    few, many = WARM_UP, WARM_UP + case.iterations
    return max(1e-9, (spent(many) - spent(few)) / case.iterations)


def main() -> None:
    """Measure in turns, print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "tf32", "bf16"])
    parser.add_argument("--only", default="", help="part of a block's name")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.device}\n")
    print("| block | bare | BRECQ | of bare | plain | faster | bare | QDrop | of bare | plain | faster |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if arguments.only not in case.name:
            continue
        best: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for name, measure in {
                "bare brecq": lambda c=case: bare(c, arguments.device, of_input=False),
                "bare qdrop": lambda c=case: bare(c, arguments.device, of_input=True),
                "brecq": lambda c=case: ours(c, arguments.device, None, arguments.precision),
                "plain brecq": lambda c=case: plain(c, arguments.device, None),
                "qdrop": lambda c=case: ours(c, arguments.device, 4, arguments.precision),
                "plain qdrop": lambda c=case: plain(c, arguments.device, 4),
            }.items():
                best[name] = min(best.get(name, float("inf")), measure())
        cells = []
        for method in ("brecq", "qdrop"):
            cells += [
                f"{best['bare ' + method] * 1e3:.2f} ms",
                f"{best[method] * 1e3:.2f} ms",
                f"{best[method] / best['bare ' + method]:.2f}x",
                f"{best['plain ' + method] * 1e3:.2f} ms",
                f"{best['plain ' + method] / best[method]:.2f}x",
            ]
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
