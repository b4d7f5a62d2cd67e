"""Whole networks learned block by block (BRECQ), against the same method as an ordinary training loop.

    python benchmarks/learned_network.py [resnet18 resnet50 mobilenet_v2] [--device cuda] [--images 1024]
        [--iterations 20000] [--size 224] [--bits 2] [--threads 2] [--precision tf32]

torchvision networks with random weights, random images. *ours*: the call of bitsplit.quantize, everything
included. *plain*: for every unit that ours learns a few iterations of `reconstruction.py`'s plain loop on a
block of the same shape and 128 rows, scaled to the same number of iterations; nothing but these loops, in the
precision that torch chooses by itself. Then the profile of iterations on a GPU: shares of the time of
convolutions and products, of this project's kernels and of others, and the share in which the GPU does
nothing (that is, waits for launches).
"""

from __future__ import annotations

import argparse
import copy
import time
from bisect import bisect_left
from collections import defaultdict
from typing import Any

import torch
import torchvision
from reconstruction import PlainConv, learn_plainly, seconds, synchronize
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import bitsplit

ROWS = 128
PROFILED = 200  # iterations a unit
PAUSE = 2000  # microseconds: rounding steps farther apart are of different units
FEW = 20  # iterations of the plain loop that are timed
PRODUCTS = ("conv", "gemm", "xmma", "cudnn", "cutlass", "implicit", "mkldnn", "addmm")
CUDA = DeviceType.CUDA
OURS = ("bitsplit", "rounding_step", "step_", "mix_kernel", "loss_kernel", "join_sums")


def call_of(model: nn.Module, name: str, images: Tensor) -> tuple[nn.Module, Tensor]:
    """A module and what it is called with."""
    module, seen = model.get_submodule(name), []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(images)
    hook.remove()
    return module, seen[0]


def plain_seconds(model: nn.Module, name: str, images: Tensor, bits: int, device: str) -> float:
    """Of one iteration of the plain loop on a copy of this unit."""
    module, x = call_of(model, name, images)
    unit = nn.Sequential(copy.deepcopy(module))
    with torch.no_grad():
        target = unit(x)
    convolutions = [layer for layer in unit.modules() if isinstance(layer, nn.Conv2d)]
    if not convolutions:  # a classifier alone, which costs next to nothing
        return 0.0
    for layer in convolutions:
        layer.__class__ = PlainConv
        layer.prepare(bits, None, 1.0)
    return seconds(learn_plainly(unit, convolutions, x, x, target, None), FEW, device)


def shares(model: nn.Module, images: Tensor, method: bitsplit.Brecq, bits: int) -> dict[str, float]:
    """Of the time in which units are learned, by kind."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        bitsplit.quantize(model, images, method, weights=bits)
    events = sorted((e for e in found.events() if e.device_type == CUDA), key=lambda e: e.time_range.start)
    spent: dict[str, float] = defaultdict(float)
    starts = [event.time_range.start for event in events]
    for begin, end in learning_spans(events):
        spent["idle"] += end - begin
        for event in events[bisect_left(starts, begin) : bisect_left(starts, end)]:
            name = event.name.lower()
            kind = "ours" if any(word in name for word in OURS) else "other kernels"
            kind = "convolutions, products" if any(word in name for word in PRODUCTS) else kind
            spent[kind] += event.self_device_time_total
            spent["idle"] -= event.self_device_time_total
    whole = sum(spent.values())
    return {kind: time / whole for kind, time in spent.items()}


def learning_spans(events: list[Any]) -> list[tuple[float, float]]:
    """From the first to the last rounding step of every unit."""
    steps = [event.time_range.start for event in events if "rounding_step" in event.name]
    breaks = [i for i in range(1, len(steps)) if steps[i] - steps[i - 1] > PAUSE]
    edges = [0, *breaks, len(steps)]
    return [(steps[a], steps[b - 1]) for a, b in zip(edges, edges[1:], strict=False)]


def measure(name: str, arguments: argparse.Namespace) -> None:
    """Print the row of one network."""
    torch.manual_seed(0)
    device = arguments.device
    model = getattr(torchvision.models, name)(weights=None).eval().to(device)
    data = torch.randn(arguments.images, 3, arguments.size, arguments.size)
    method = bitsplit.Brecq(iterations=arguments.iterations, step_iterations=0, precision=arguments.precision)
    started = time.perf_counter()
    learned = bitsplit.quantize(model, data, method, weights=arguments.bits)
    synchronize(device)
    ours = time.perf_counter() - started
    pieces = bitsplit.report_of(learned).pieces
    loops = sum(piece.seconds for piece in pieces)
    some = data[:ROWS].to(device)
    plain = sum(plain_seconds(learned, piece.name, some, arguments.bits, device) for piece in pieces)
    plain *= arguments.iterations
    print(
        f"| {name} | {ours:.1f} s | {loops:.1f} s | {plain:.1f} s | {plain / ours:.1f}x | ",
        end="",
        flush=True,
    )
    profiled = "–"
    if device == "cuda":
        few = method.model_copy(update={"iterations": PROFILED})
        kinds = shares(model, some[:64], few, arguments.bits)
        profiled = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in kinds.items())
    print(f"{profiled} |", flush=True)


def main() -> None:
    """Read the arguments, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet18"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--iterations", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "tf32", "bf16"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.images} images, ", end="")
    print(f"{arguments.iterations} iterations a unit, W{arguments.bits}, precision {arguments.precision}\n")
    print("| network | ours | of it learning | plain | faster | profile |")
    print("|---|---|---|---|---|---|")
    for name in arguments.networks:
        measure(name, arguments)


if __name__ == "__main__":
    main()
