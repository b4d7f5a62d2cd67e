"""In which order units are called, and until when their outputs are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from bitsplit.calibration.replay import UnitCall
from bitsplit.network import Network


@dataclass(frozen=True)
class Schedule:
    """calls: every unit call in execution order.  last_reader: for each of them the position of the last unit
    call that reads its output, through whatever lies between units."""

    calls: list[UnitCall]
    last_reader: list[int]

    def dead_after(self, position: int) -> list[UnitCall]:
        """Calls whose output nobody reads once the call at ``position + 1`` is finished."""
        return [call for call, last in zip(self.calls, self.last_reader, strict=True) if last == position]


def unit_schedule(network: Network, forward: Callable[[nn.Module, Any], Any], batch: Any) -> Schedule:
    """Run ``batch`` once and note the order of unit calls."""
    calls: list[UnitCall] = []
    counts: Counter[str] = Counter()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple) -> None:
            calls.append((name, counts[name]))
            counts[name] += 1

        return hook

    with ExitStack() as hooks:
        for unit in network.units:
            module = network.model.get_submodule(unit.name)
            hooks.callback(module.register_forward_pre_hook(note(unit.name)).remove)
        forward(network.model, batch)
    return Schedule(calls, [len(calls)] * len(calls))
