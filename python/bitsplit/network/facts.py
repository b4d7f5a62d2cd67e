"""What follows from a record about every value: does it carry image data, is it a weight, never negative."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bitsplit.network.operations import ADDITIONS, PRODUCTS, REARRANGING, is_nonnegative, operand, refs
from bitsplit.network.record import Op, Record


@dataclass(frozen=True)
class Product:
    """A sum of products: the operation's number, the operand that carries data, the weight's value or None.

    ``weight`` is None when both operands carry data (attention).
    """

    op: int
    data: int
    weight: int | None


class Facts:
    """Forward and backward passes over a record, each done once.

    data: the value depends on the network's input.  weights: the parameters a value without data is made of.
    same_as: the parameter a value is a mere view of.  nonnegative: proven to be at least zero.
    weighted: a product with weights lies between the input and this value.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.data: list[bool] = []
        self.weights: list[frozenset[str]] = []
        self.same_as: list[str | None] = []
        self.nonnegative: list[bool] = []
        self.weighted: list[bool] = []
        self.products: dict[int, Product] = {}
        self._pass_forward()

    def _pass_forward(self) -> None:
        values = self.record.values
        count = len(values)
        self.data = [value.origin in ("input", "unknown") for value in values]
        self.weights = [
            frozenset([value.name]) if value.origin == "parameter" else frozenset() for value in values
        ]
        self.same_as = [value.name if value.origin == "parameter" else None for value in values]
        self.nonnegative = [False] * count
        self.weighted = [False] * count
        for number, op in enumerate(self.record.ops):
            self._follow(number, op)

    def _follow(self, number: int, op: Op) -> None:
        inputs = op.inputs
        data = any(self.data[v] for v in inputs)
        weights = frozenset().union(*(self.weights[v] for v in inputs if not self.data[v]))
        product = self._product(number, op)
        if product is not None:
            self.products[number] = product
        same_as = self.same_as[inputs[0]] if op.name in REARRANGING and len(inputs) == 1 else None
        nonnegative = is_nonnegative(
            op, all(self.nonnegative[v] for v in inputs), bool(inputs) and self.nonnegative[inputs[-1]]
        )
        weighted = any(self.weighted[v] for v in inputs)
        weighted |= product is not None and product.weight is not None and data
        for value in op.outputs:
            self.data[value] = data
            self.weights[value] = frozenset() if data else weights
            self.same_as[value] = same_as
            self.nonnegative[value] = nonnegative
            self.weighted[value] = weighted

    def _product(self, number: int, op: Op) -> Product | None:
        if op.name not in PRODUCTS:
            return None
        left, right = (refs(op.args[position])[0] for position in PRODUCTS[op.name])
        if self.data[left] and self.data[right]:
            return Product(number, left, None)
        for data, weight in ((left, right), (right, left)):
            if self.weights[weight] and not self.data[weight]:
                return Product(number, data, weight)
        return None

    @cached_property
    def consumers(self) -> list[list[int]]:
        """For every value the operations that read it."""
        return self.record.consumers()

    def is_branch_addition(self, op: Op) -> bool:
        """Whether two different values that carry data are added."""
        return op.name in ADDITIONS and len(self.data_inputs(op)) > 1

    def data_inputs(self, op: Op) -> tuple[int, ...]:
        """The different values with data that ``op`` reads."""
        return tuple(dict.fromkeys(v for v in op.inputs if self.data[v]))

    def back_through(self, value: int, names: frozenset[str], first: int) -> int:
        """Follow ``value`` back through operations of ``names``, as far as operation number ``first``."""
        while True:
            producer = self.record.values[value].producer
            if producer is None or producer < first:
                return value
            op = self.record.ops[producer]
            if op.name not in names or len(op.inputs) != 1:
                return value
            value = op.inputs[0]

    def adds_bias(self, op: Op, bias: str) -> bool:
        """Whether ``op`` adds the parameter ``bias`` to its first argument."""
        added = refs(operand(op, 1, "other"))
        return op.name == "add" and len(op.inputs) == 2 and all(self.same_as[v] == bias for v in added)
