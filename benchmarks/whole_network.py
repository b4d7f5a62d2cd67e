"""Where the time goes when a whole network is quantized: shares of the phases.

    python benchmarks/whole_network.py resnet18 resnet50 [--images 256] [--threads 2] [--activations 8]
        [--device cuda]

torchvision networks with random weights, random images of 224 px, 4-bit weights. Phases are told apart by
clocks around the functions named below; each counts what it does itself, not what it calls of another phase.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import nn

import bitsplit
from bitsplit.calibration import passes
from bitsplit.calibration.features import FeatureStore
from bitsplit.methods.base import ActivationMethod

PHASES: list[tuple[str, Any, str]] = [
    ("layers of both networks", nn.Conv2d, "forward"),
    ("layers of both networks", nn.Linear, "forward"),
    ("second moments", passes, "gram"),
    ("codes and scales", bitsplit.BitSplit, "fit_rows"),
    ("activation ranges", ActivationMethod, "fit_layer"),
    ("keeping features", FeatureStore, "put"),
    ("keeping features", FeatureStore, "get"),
    ("keeping features", FeatureStore, "shape_only"),
]
REST = "everything else"


class Clock:
    """Seconds by phase; a phase inside another one stops the outer clock."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._synchronize = synchronize
        self._running = [REST]
        self._since = time.perf_counter()

    def switch(self) -> None:
        """Book the time since the last switch on the phase that is running."""
        self._synchronize()
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def around(self, phase: str, function: Callable) -> Callable:
        """``function`` on the clock of ``phase``."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch()
            self._running.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch()
                self._running.pop()

        return timed


def measure(name: str, images: int, activations: int | None, device: str) -> dict[str, float]:
    """Seconds by phase of one network."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval().to(device)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(images, 3, 224, 224, generator=generator)
    clock = Clock(torch.cuda.synchronize if device == "cuda" else lambda: None)
    with ExitStack() as patches:
        for phase, owner, attribute in PHASES:
            timed = clock.around(phase, getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, timed))
        bitsplit.quantize(model, data, weights=4, activations=activations)
        clock.switch()
    return clock.seconds


def main() -> None:
    """Read the arguments, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--images", type=int, help="default 256, on a card 1,024")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--activations", type=int)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images = arguments.images or (1024 if arguments.device == "cuda" else 256)
    columns = list(dict.fromkeys(phase for phase, *_ in PHASES)) + [REST]
    print(f"| network | seconds | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name in arguments.networks:
        seconds = measure(name, images, arguments.activations, arguments.device)
        total = sum(seconds.values())
        cells = [f"{100 * seconds[phase] / total:.0f} %" for phase in columns]
        print(f"| {name} | {total:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
