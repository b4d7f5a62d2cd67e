"""Units: the modules that are fitted as a whole.

A *block* is a small module with one tensor (or list of tensors) in and one tensor out in whose own code branches
meet (a residual addition, a concatenation, a gate), or that is of the same class as such a module, or that holds
a few layers in a row in a class of its own.  Every other layer is a unit by itself.
"""

from __future__ import annotations

from torch import nn

from bitsplit.network.facts import Facts
from bitsplit.network.model import Unit
from bitsplit.network.operations import JOINS
from bitsplit.network.record import Call
from bitsplit.network.usage import Usage

MOST_LAYERS_OF_A_BLOCK = 12
MOST_LAYERS_WITHOUT_JOIN = 4

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def find_units(model: nn.Module, usages: list[Usage], facts: Facts) -> list[Unit]:
    """The units of all quantizable layers, in execution order."""
    search = _Search(model, [usage for usage in usages if not usage.reason], facts)
    blocks = search.blocks()
    taken: dict[str, str] = {}
    for block in blocks:
        for layer in search.layers_of(block):
            taken.setdefault(layer, facts.record.calls[block].name)
    return search.assemble(blocks, taken)


class _Search:
    """Looks through the tree of module calls from the outside in."""

    def __init__(self, model: nn.Module, usages: list[Usage], facts: Facts) -> None:
        self._modules = dict(model.named_modules())
        self._facts = facts
        self._record = facts.record
        self._usages = {usage.name: usage for usage in usages}
        self._layers: list[tuple[str, ...]] = [()] * len(self._record.calls)
        for number in reversed(range(len(self._record.calls))):
            call = self._record.calls[number]
            inside = [name for child in call.children for name in self._layers[child]]
            own = [call.name] if call.name in self._usages else inside
            self._layers[number] = tuple(dict.fromkeys(own))
        self._joined = [self._has_own_join(call) for call in self._record.calls]
        self._classes = {
            self._class_of(number)
            for number in range(len(self._record.calls))
            if self._joined[number] and len(self._layers[number]) > 1 and self._is_closed(number)
        }

    def layers_of(self, call: int) -> tuple[str, ...]:
        """The layers run in ``call`` and nowhere else."""
        outside = self._record.calls[call]
        inside = range(call, self._end_of(call))
        name = outside.name
        return tuple(
            layer
            for layer in self._layers[call]
            if all(number in inside or self._is_within(number, name) for number in self._usages[layer].calls)
        )

    def blocks(self) -> list[int]:
        """The calls of all blocks, the first call of each module."""
        found: list[int] = []
        for number, call in enumerate(self._record.calls):
            if call.parent is None:
                self._descend(number, found)
        first = {self._record.calls[number].name: number for number in reversed(found)}
        return sorted(number for number in first.values() if self.layers_of(number))

    def _descend(self, number: int, found: list[int]) -> None:
        if self._is_block(number):
            found.append(number)
            return
        for child in self._record.calls[number].children:
            if len(self._layers[child]) > 0:
                self._descend(child, found)

    def _is_block(self, number: int) -> bool:
        call = self._record.calls[number]
        count = len(self._layers[number])
        if call.name in self._usages or call.name == "" or not self._is_closed(number):
            return False
        if self._joined[number] or self._class_of(number) in self._classes:
            return 1 < count <= MOST_LAYERS_OF_A_BLOCK or (count == 1 and self._adds(call))
        if not 1 < count <= MOST_LAYERS_WITHOUT_JOIN or isinstance(self._modules[call.name], _CONTAINERS):
            return False
        return not any(self._holds_block(child) for child in call.children)

    def _holds_block(self, number: int) -> bool:
        return self._is_block(number) or any(map(self._holds_block, self._record.calls[number].children))

    def _class_of(self, number: int) -> type[nn.Module] | None:
        kind = type(self._modules[self._record.calls[number].name])
        return None if issubclass(kind, _CONTAINERS) and kind.forward is nn.Sequential.forward else kind

    def _is_closed(self, number: int) -> bool:
        """One tensor or list in, one tensor out, and no other data read from outside."""
        call = self._record.calls[number]
        facts = self._facts
        arguments = [a for a in call.arguments if any(facts.data[v] for v in a)]
        if not call.whole_output or len(arguments) != 1:
            return False
        inside = set(arguments[0])
        for op in self._record.ops[call.first : call.last]:
            if any(facts.data[v] and v not in inside for v in op.inputs):
                return False
            inside.update(op.outputs)
        return True

    def _own_joins(self, call: Call) -> list[str]:
        """Operations in the module's own code (or in helpers without layers) where branches meet."""
        names = []
        for number in self._record.ops_in(call):
            op = self._record.ops[number]
            owner = next(a for a in self._record.ancestors(op.call) if self._layers[a] or a == 0)
            if (
                self._record.calls[owner] is call
                and op.name in JOINS
                and len(self._facts.data_inputs(op)) > 1
            ):
                names.append(op.name)
        return names

    def _has_own_join(self, call: Call) -> bool:
        return bool(self._own_joins(call))

    def _adds(self, call: Call) -> bool:
        return "add" in self._own_joins(call)

    def _end_of(self, number: int) -> int:
        """One past the last call made inside call ``number``."""
        children = self._record.calls[number].children
        return self._end_of(children[-1]) if children else number + 1

    def _is_within(self, number: int, name: str) -> bool:
        return any(self._record.calls[a].name == name for a in self._record.ancestors(number))

    def assemble(self, blocks: list[int], taken: dict[str, str]) -> list[Unit]:
        """Blocks and single layers in execution order, with their stages."""
        starts: list[tuple[int, str, tuple[str, ...]]] = []
        for block in blocks:
            name = self._record.calls[block].name
            layers = tuple(layer for layer in self.layers_of(block) if taken[layer] == name)
            starts.append((block, "block", layers))
        for name, usage in self._usages.items():
            if name not in taken:
                starts.append((usage.calls[0], "layer", (name,)))
        units: list[Unit] = []
        for number, kind, layers in sorted(starts):
            call = self._record.calls[number]
            shape = self._record.values[call.outputs[0]].shape
            same = (
                units
                and units[-1].output_shape[2:] == shape[2:]
                and len(shape) == len(units[-1].output_shape)
            )
            stage = 0 if not units else units[-1].stage + (0 if same else 1)
            calls = len(self._record.calls_of(call.name))
            units.append(Unit(call.name, kind, layers, call.number, calls, shape, stage))
        return units
