"""Units in a row that can be run one after the other, so that a stage is learned at once."""

from __future__ import annotations

from bitsplit.network.model import Network, Unit


def joined_units(network: Network) -> list[tuple[Unit, ...]]:
    """All units; together those of a stage of which each is called once, with what the one before gave."""
    groups: list[tuple[Unit, ...]] = []
    for unit in network.units:
        if groups and _follows(network, groups[-1][-1], unit):
            groups[-1] += (unit,)
        else:
            groups.append((unit,))
    return groups


def _follows(network: Network, before: Unit, unit: Unit) -> bool:
    if before.stage != unit.stage or before.calls != 1 or unit.calls != 1:
        return False
    record = network.record
    given, called = (record.calls[record.calls_of(name)[0]] for name in (before.name, unit.name))
    around = {record.calls[number].name for number in record.ancestors(called.parent)}
    return called.arguments == (given.outputs,) and around.isdisjoint(unit.name for unit in network.units)
