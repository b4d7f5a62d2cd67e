"""How much memory a default run may use for features, and what a run will need."""

from __future__ import annotations

import os
from dataclasses import dataclass

from bitsplit.calibration.schedule import Schedule
from bitsplit.data import Batches
from bitsplit.network import Network


def free_memory() -> int:
    """Bytes of host memory that can be used without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


@dataclass(frozen=True)
class Forecast:
    """Bytes: features of both models at the worst moment, those that will lie on disk, second moments of the
    largest layer."""

    features: int
    on_disk: int
    moments: int

    def __str__(self) -> str:
        gib = 2**30
        in_memory = self.features - self.on_disk
        return (
            f"features: {in_memory / gib:.2f} GiB in memory, {self.on_disk / gib:.2f} GiB on disk; "
            f"second moments of the largest layer: {self.moments / gib:.2f} GiB"
        )


def forecast(network: Network, schedule: Schedule, data: Batches, budget: int) -> Forecast:
    """What a run over ``data`` will need, from the sizes that the observed forward had."""
    per_size = 2 * 4 * data.images / network.record.batch_size
    live = worst = 0.0
    for position, size in enumerate(schedule.output_size):
        live += per_size * size
        worst = max(worst, live)
        live -= sum(
            per_size * schedule.output_size[index]
            for index, last in enumerate(schedule.last_reader)
            if last == position
        )
    matrices = (layer.kind.matrix(layer.module, layer.module.weight) for layer in network.layers.values())
    moments = max((8 * m.shape[0] * m.shape[2] * (m.shape[1] + m.shape[2]) for m in matrices), default=0)
    return Forecast(int(worst), max(0, int(worst) - budget), moments)
