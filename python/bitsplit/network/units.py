"""Units: the modules that are fitted as a whole.

Searched from the outside in.  A *block* is a module, no mere container, with at most ``MOST_LAYERS`` layers
that takes tensors (in one argument, or in several when there is no such module around it), gives one tensor
and changes nothing else that is read later, and
* in whose own code branches meet (a residual addition, a concatenation, a gate), or
* that is of the same class as such a block (the blocks of a network that change the resolution lack the
addition), or
* that holds at most ``MOST_LAYERS_WITHOUT_JOIN`` layers and no block but gates.
It is opened when at least half of its layers lie in smaller modules with residual additions of their own: a
stage of residual blocks is not a block.  Every layer outside of blocks is a unit by itself.
"""

from __future__ import annotations

from torch import nn

from bitsplit.network.facts import Facts
from bitsplit.network.model import Unit
from bitsplit.network.operations import JOINS, selected
from bitsplit.network.record import Call, Op
from bitsplit.network.usage import Usage

MOST_LAYERS = 11
MOST_LAYERS_WITHOUT_JOIN = 5

_CONTAINER_FORWARDS = (nn.Sequential.forward,)


def find_units(model: nn.Module, usages: list[Usage], facts: Facts) -> list[Unit]:
    """The units of all quantizable layers, in execution order."""
    return _Search(model, [usage for usage in usages if not usage.reason], facts).units()


class _Search:
    """Looks through the tree of module calls; calls are named by their numbers."""

    def __init__(self, model: nn.Module, usages: list[Usage], facts: Facts) -> None:
        self._modules = dict(model.named_modules())
        self._facts = facts
        self._record = facts.record
        self._usages = {usage.name: usage for usage in usages}
        self._layers = self._layers_inside()
        self._leaky = {call.name for call in self._record.calls if self._leaks(call)}
        numbers = range(len(self._record.calls))
        self._open_to_many = [self._is_closed(number, many=True) for number in numbers]
        self._closed = [
            self._open_to_many[number] and self._is_closed(number, many=False) for number in numbers
        ]
        self._joins = self._joins_by_owner(self._closed), self._joins_by_owner(self._open_to_many)
        self._classes = {
            self._class_of(n) for n in numbers if self._joins[0].get(n) and len(self._layers[n]) > 1
        }

    def units(self) -> list[Unit]:
        """Blocks and single layers in execution order, with their stages."""
        found: list[tuple[int, str, tuple[str, ...]]] = []
        taken: set[str] = set()
        for block in self._blocks():
            layers = tuple(layer for layer in self._layers_only_in(block) if layer not in taken)
            if layers:
                found.append((block, "block", layers))
                taken.update(layers)
        found += [
            (usage.calls[0], "layer", (name,)) for name, usage in self._usages.items() if name not in taken
        ]
        units: list[Unit] = []
        for number, kind, layers in sorted(found):
            call = self._record.calls[number]
            shape = self._record.values[call.outputs[0]].shape
            stage = units[-1].stage + (_spatial(units[-1].output_shape) != _spatial(shape)) if units else 0
            calls = len(self._record.calls_of(call.name))
            units.append(Unit(call.name, kind, layers, call.number, calls, shape, stage))
        return units

    # Blocks

    def _blocks(self) -> list[int]:
        """The first call of every block."""
        found: list[int] = []
        pending = [n for n, call in enumerate(self._record.calls) if call.parent is None]
        while pending:
            number = pending.pop()
            if self._is_block(number, many=False) or self._is_block(number, many=True):
                found.append(number)
            else:
                pending += [child for child in self._record.calls[number].children if self._layers[child]]
        first = {self._record.calls[number].name: number for number in sorted(found, reverse=True)}
        return sorted(first.values())

    def _is_block(self, number: int, many: bool) -> bool:
        call = self._record.calls[number]
        closed = self._open_to_many if many else self._closed
        count = len(self._layers[number])
        if call.name in self._usages or call.name == "" or not closed[number] or not 0 < count <= MOST_LAYERS:
            return False
        joins = self._joins[many].get(number, [])
        if joins or self._class_of(number) in self._classes:
            if count == 1 and "add" not in joins:
                return False
            return 2 * len(self._layers_in_residuals(number)) < count
        if not 1 < count <= MOST_LAYERS_WITHOUT_JOIN or self._class_of(number) is None:
            return False
        return not any(map(self._holds_block, call.children))

    def _holds_block(self, number: int) -> bool:
        """Whether ``number`` is a block, other than a mere gate, or has one inside."""
        is_gate = set(self._joins[1].get(number, [])) == {"mul"}
        if not is_gate and self._is_block(number, many=True):
            return True
        return any(map(self._holds_block, self._record.calls[number].children))

    def _layers_in_residuals(self, number: int) -> set[str]:
        """The layers that lie in modules inside ``number`` with residual additions of their own."""
        layers: set[str] = set()
        for child in self._record.calls[number].children:
            if "add" in self._joins[1].get(child, []) and len(self._layers[child]) > 1:
                layers.update(self._layers[child])
            else:
                layers.update(self._layers_in_residuals(child))
        return layers

    # Facts about calls

    def _layers_inside(self) -> list[tuple[str, ...]]:
        """For every call the layers that run in it, in execution order."""
        layers: list[tuple[str, ...]] = [()] * len(self._record.calls)
        for number in reversed(range(len(self._record.calls))):
            call = self._record.calls[number]
            inside = [name for child in call.children for name in layers[child]]
            layers[number] = tuple(dict.fromkeys([call.name] if call.name in self._usages else inside))
        return layers

    def _layers_only_in(self, number: int) -> list[str]:
        """The layers of call ``number`` that run nowhere but in its module."""
        name = self._record.calls[number].name
        return [
            layer
            for layer in self._layers[number]
            if all(self._is_within(call, name) for call in self._usages[layer].calls)
        ]

    def _is_within(self, number: int, name: str) -> bool:
        return any(self._record.calls[around].name == name for around in self._record.ancestors(number))

    def _class_of(self, number: int) -> type[nn.Module] | None:
        """The module's class, or None for a container that says nothing about what is inside."""
        kind = type(self._modules[self._record.calls[number].name])
        return None if kind.forward in _CONTAINER_FORWARDS else kind

    def _is_closed(self, number: int, many: bool) -> bool:
        """Data come in by one argument (or ``many``), one tensor goes out; no more is read or changed.

        And no rows are selected by their values: a quantized block would select others than its target has.
        """
        call, data = self._record.calls[number], self._facts.data
        arguments = [argument for argument in call.arguments if any(data[v] for v in argument)]
        if not call.whole_output or not arguments or (len(arguments) > 1 and not many):
            return False
        known = {value for argument in arguments for value in argument}
        for op in self._record.ops[call.first : call.last]:
            reads_more = any(data[v] and v not in known for v in op.inputs)
            if reads_more or selected(op, self._record, self._facts.consumers):
                return False
            known.update(op.outputs)
        return call.name not in self._leaky

    def _leaks(self, call: Call) -> bool:
        """Whether later operations see what ``call`` did by other ways than its output.

        It may have written into a tensor from outside, or have put one away for others.
        """
        for op in self._record.ops[call.first : call.last]:
            outside = any(maker < call.first for maker in op.overwritten)
            for value in op.outputs:
                if (outside or value not in call.outputs) and self._facts.data[value]:
                    readers = self._facts.consumers[value]
                    if value in self._record.outputs or any(reader >= call.last for reader in readers):
                        return True
        return False

    def _is_activation(self, op: Op) -> bool:
        """Whether ``op`` is the product in an activation such as x * sigmoid(x)."""
        return op.name == "mul" and op.call is not None and not self._layers[op.call]

    def _joins_by_owner(self, closed: list[bool]) -> dict[int, list[str]]:
        """The operations where branches meet, by the innermost closed call with layers around each."""
        joins: dict[int, list[str]] = {}
        for op in self._record.ops:
            if op.name in JOINS and len(self._facts.data_inputs(op)) > 1 and not self._is_activation(op):
                around = (n for n in self._record.ancestors(op.call) if closed[n] and self._layers[n])
                owner = next(around, None)
                if owner is not None:
                    joins.setdefault(owner, []).append(op.name)
        return joins


def _spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The resolution of an output: the axes behind batch and channels, channels last when there are three."""
    return shape[2:] if len(shape) != 3 else shape[1:2]
