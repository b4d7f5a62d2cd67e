"""How far the layers of CIFAR-10 ResNet-20 can be fitted: objectives relative to the released Bit-Split.

    python benchmarks/layer_objectives.py ../shared/data [--threads 1] [--search 25 100]

18 convolutions (without the first one and the classifier), float inputs, 12,000 patches each. The baseline is
what the released iteration ends with: fwa, ofwa, bit planes; `tests/test_split.py` shows that the operators
take its integers. Printed: 1 - geometric mean over the layers of objective / baseline, and seconds for all.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import bitsplit
from bitsplit.data import JpegArchive, Preprocessing
from bitsplit.models.load import load_model
from bitsplit.ops.gram import GramSums
from bitsplit.ops.split import Descent, objective
from bitsplit.quantizers import Grid

IMAGES, PATCHES_PER_IMAGE = 1000, 12
PREPROCESSING = Preprocessing(None, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
Fit = Callable[[Tensor, Tensor, Tensor, int], Descent]


def layers(folder: Path) -> list[tuple[Tensor, GramSums]]:
    """Weight [1, M, N] and second moments of every convolution but the first."""
    network = load_model("bitsplit.models.cifar:resnet20", folder / "models" / "cifar10_resnet20.th").eval()
    archive = JpegArchive(folder / "cifar10" / "train.npz", PREPROCESSING)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(archive), generator=generator)[:IMAGES].tolist()
    images = torch.stack([archive[index][0] for index in chosen])
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)][1:]
    moments = [GramSums.zeros(1, module.weight[0].numel(), module.out_channels) for module in convolutions]

    def measure(sums: GramSums, module: nn.Conv2d, x: Tensor, y: Tensor) -> None:
        patches = y.shape[2] * y.shape[3]
        positions = torch.rand(len(x), patches, generator=generator).argsort(1)[:, :PATCHES_PER_IMAGE]
        geometry = {"kernel": module.kernel_size, "stride": module.stride, "padding": module.padding}
        sums.add(x, y, **geometry, dilation=module.dilation, positions=positions)

    for module, sums in zip(convolutions, moments, strict=True):
        module.register_forward_hook(lambda m, x, y, sums=sums: measure(sums, m, x[0], y))
    with torch.no_grad():
        for batch in images.split(200):
            network(batch)
    weights = [module.weight.detach().flatten(1)[None] for module in convolutions]
    return list(zip(weights, moments, strict=True))


def fits(searches: list[int]) -> dict[str, Fit]:
    """By name; the first one is the baseline."""

    def by(**options) -> Fit:
        method = bitsplit.BitSplit(**options)
        return lambda weight, gram, cross, bits: method.fit_rows(
            weight, gram, cross, Grid.symmetric(bits), seed=0
        )

    named = {
        "released (bit planes)": by(starts="planes", polish=False),
        "bit planes, polish": by(starts="planes"),
        "six scales, feedback, polish": by(search=0),
    }
    return named | {f"the same, search of {steps} steps a weight": by(search=steps) for steps in searches}


def errors(fit: Fit, network: list[tuple[Tensor, GramSums]], bits: int) -> tuple[list[float], float]:
    """Objective of every layer, and seconds for all."""
    started = time.perf_counter()
    found = [fit(weight, sums.G, sums.C, bits) for weight, sums in network]
    seconds = time.perf_counter() - started
    return [
        objective(result.codes, result.scale, sums.G, sums.C, sums.sum_yy).sum().item()
        for result, (_, sums) in zip(found, network, strict=True)
    ], seconds


def main() -> None:
    """Read the arguments, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with cifar10/ and models/")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--search", type=int, nargs="*", default=[25, 100])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    network = layers(arguments.data)
    print("| fit | W4 | W3 | W2 |\n|---|---|---|---|")
    baseline: dict[int, list[float]] = {}
    for name, fit in fits(arguments.search).items():
        cells = []
        for bits in (4, 3, 2):
            found, seconds = errors(fit, network, bits)
            released = baseline.setdefault(bits, found)
            ratios = [math.log(a / b) for a, b in zip(found, released, strict=True)]
            mean = math.exp(sum(ratios) / len(ratios)) - 1
            cells.append(f"{100 * mean:+.1f} %, {seconds:.2f} s".replace("-", "−"))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
