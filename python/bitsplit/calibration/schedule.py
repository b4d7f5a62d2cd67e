"""In which order units are called, and until when their outputs are read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules import pooling

from bitsplit.calibration.replay import UnitCall
from bitsplit.network import Network, Unit
from bitsplit.network.record import LEAVES_TORCH, Record

# what turns values into decisions of the model's own code: these must come out right in every later run
_DECISIONS = {
    "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "_unique2", "masked_select",
    LEAVES_TORCH,
}  # fmt: skip


_POOLS = (
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._LPPoolNd,
)


@dataclass(frozen=True)
class Schedule:
    """calls: every unit call in execution order, those within another one left out, and the pools between
    them, so that these are not computed in every pass.  inside: the units called within each, once a call.
    last_reader: for each the position of the last call that reads its output, directly or through what lies
    between.  output_size: elements of it."""

    calls: list[UnitCall]
    inside: dict[UnitCall, list[str]]
    last_reader: list[int]
    output_size: list[int]

    def dead_after(self, position: int) -> list[UnitCall]:
        """Calls whose output nobody reads any more once the call at ``position`` is finished."""
        return [call for call, last in zip(self.calls, self.last_reader, strict=True) if last == position]


def unit_schedule(network: Network, together: Sequence[tuple[Unit, ...]] = ()) -> Schedule:
    """The schedule of the observed forward.

    together: units in a row that are learned as one; what the first reads is kept until the last is done.
    """
    record = network.record
    units = {unit.name for unit in network.units} | _pools(network.model)
    numbers, inside = [], defaultdict(list)
    for index, call in enumerate(record.calls):
        if call.name in units:
            around = [record.calls[n] for n in record.ancestors(call.parent) if record.calls[n].name in units]
            if around:
                inside[around[-1].name, around[-1].number].append(call.name)
            else:
                numbers.append(index)
    sizes = [sum(math.prod(record.values[value].shape) for value in record.calls[n].outputs) for n in numbers]
    calls = [(record.calls[number].name, record.calls[number].number) for number in numbers]
    last_reader = _last_readers(record, {n: p for p, n in enumerate(numbers)})
    for units in filter(lambda units: len(units) > 1, together):
        first, last = calls.index((units[0].name, 0)), calls.index((units[-1].name, 0))
        last_reader = [last if first <= position <= last else position for position in last_reader]
    return Schedule(calls, inside, last_reader, sizes)


def _pools(model: nn.Module) -> set[str]:
    """Pooling never changes its input in place, so an output that is kept can stand for it."""
    return {name for name, module in model.named_modules() if isinstance(module, _POOLS)}


def _last_readers(record: Record, positions: dict[int, int]) -> list[int]:
    """Follow every unit call's output through the operations between units."""
    last = list(range(len(positions)))
    sources: dict[int, frozenset[int]] = {}
    for op in record.ops:
        inside = next((positions[call] for call in record.ancestors(op.call) if call in positions), None)
        read = frozenset().union(*(sources.get(value, frozenset()) for value in op.inputs))
        for source in read:
            if inside is not None:
                last[source] = max(last[source], inside)
            elif op.name in _DECISIONS:
                last[source] = len(positions)
        for value in op.outputs:
            sources[value] = read if inside is None else frozenset({inside})
    return last
