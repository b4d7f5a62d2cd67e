"""The record of one forward: every operation, the values between them, and the module calls around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

LEAVES_TORCH = "leaves_torch"  # an operation of the record's own: NumPy or Python reads the values

Origin = Literal["parameter", "buffer", "input", "constant", "unknown", "op"]


def base_name(operation: torch._ops.OpOverload) -> str:
    """``aten.relu_.default`` is ``relu``."""
    return operation._schema.name.split("::")[-1].removesuffix("_")


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor among an operation's recorded arguments: the number of its value."""

    value: int


@dataclass(slots=True)
class Value:
    """What one tensor held at one time; an in-place operation gives its tensor a new value.

    origin: where it comes from; ``name`` is the parameter's or buffer's.  A "constant" was a number of
    the model's code.  producer: the number of the operation.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: Origin
    name: str = ""
    producer: int | None = None


@dataclass(slots=True)
class Op:
    """One operation, by its ``base_name``.

    args, kwargs: as called, tensors replaced by ``Ref``.  call: the innermost module call it ran in, or None.
    overwritten: for every piece of memory that it writes into, the number of the operation that had made it,
    -1 for memory older than the forward.
    The name ``alias`` is the record's own: it joins a tensor's value with what was written to its memory
    since.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    call: int | None
    overwritten: tuple[int, ...] = ()


@dataclass(slots=True)
class Call:
    """One call of a module: path, number among the calls of the same module, and the operations it ran.

    arguments: per argument that holds tensors, keywords by their names, the values in it.  whole_output: the
    output is one tensor and nothing else.  first, last: its operations are ``ops[first:last]``.
    """

    name: str
    number: int
    parent: int | None
    arguments: tuple[tuple[int, ...], ...]
    first: int
    outputs: tuple[int, ...] = ()
    whole_output: bool = False
    last: int = 0
    children: list[int] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[int, ...]:
        """All values among the arguments."""
        return tuple(value for argument in self.arguments for value in argument)


@dataclass
class Record:
    """Everything that happened in one forward, in order."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    batch_size: int = 1

    def calls_of(self, name: str) -> list[int]:
        """The numbers of all calls of module ``name``."""
        return [index for index, call in enumerate(self.calls) if call.name == name]

    def ops_in(self, call: Call) -> range:
        """The numbers of the operations run during ``call``, its children's included."""
        return range(call.first, call.last)

    def consumers(self) -> list[list[int]]:
        """For every value the operations that read it."""
        readers: list[list[int]] = [[] for _ in self.values]
        for index, op in enumerate(self.ops):
            for value in dict.fromkeys(op.inputs):
                readers[value].append(index)
        return readers

    def ancestors(self, call: int | None) -> Iterator[int]:
        """``call`` and the calls around it, from the inside out."""
        while call is not None:
            yield call
            call = self.calls[call].parent
