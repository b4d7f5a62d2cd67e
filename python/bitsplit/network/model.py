"""The facts about a network that everything else works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from bitsplit.network.layers import LayerKind, kind_of
from bitsplit.network.operations import selected
from bitsplit.network.record import Record, Value


@dataclass(frozen=True)
class Layer:
    """A layer that can be quantized.

    calls: how often one forward runs it.  unit: the name of its unit.
    input_key: layers with equal keys read the same tensors in all of their calls and share a quantizer.
    nonnegative: its input is proven to be at least zero.  is_first: no other layer lies between the network's
    input and it.  is_last: no other layer lies between it and the network's output.
    arguments: the units around it that are called with its input, and the position of that among the tensors
    they are called with.
    input_shape, output_shape: of the observed batch, first call.  macs: multiplications per image, all calls.
    """

    name: str
    module: nn.Module
    calls: int
    unit: str
    input_key: int
    nonnegative: bool
    is_first: bool
    is_last: bool
    arguments: dict[str, int]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int

    @property
    def kind(self) -> LayerKind:
        """The row of the table of kinds."""
        return kind_of(self.module)


@dataclass(frozen=True)
class Unit:
    """A module that is fitted as a whole: one tensor (or list of tensors) in, one tensor out.

    layers: in execution order.  call: the number of the call, among its module's, at which it is first
    complete.  calls: how often one forward runs the module.  stage: units in a row with outputs of one
    resolution share it.
    """

    name: str
    kind: Literal["block", "layer"]
    layers: tuple[str, ...]
    call: int
    calls: int
    output_shape: tuple[int, ...]
    stage: int


@dataclass(frozen=True)
class Norm:
    """A normalisation module: the layer it can be folded into, or the reason why it stays.

    has_statistics: it normalizes by stored statistics, as batch norms do.  folded: it has been folded.
    """

    name: str
    layer: str | None
    reason: str
    has_statistics: bool
    folded: bool = False


@dataclass(frozen=True)
class Uncovered:
    """Weights that no quantizer will reach, or a product of two activations.

    name: module or parameter.  what: what it is.  reason: why it stays float.  macs: multiplications per
    image.
    """

    name: str
    what: str
    reason: str
    macs: int = 0


@dataclass
class Network:
    """A model and what one forward of it has shown; layers and units in execution order.

    Every layer is in exactly one unit.  computed: layers that ``bake_effective_weights`` would make
    quantizable.
    record: all operations and calls.  batch, step: what the forward was run with.
    """

    model: nn.Module
    layers: dict[str, Layer]
    units: list[Unit]
    norms: list[Norm]
    uncovered: list[Uncovered]
    computed: list[str]
    record: Record = field(repr=False)
    batch: Any = field(repr=False)
    step: Callable[[nn.Module, Any], Any] = field(repr=False)

    @property
    def selected(self) -> list[Value]:
        """The masks and places by which it keeps or orders rows by values, as detectors do with boxes."""
        consumers = self.record.consumers()
        return [value for op in self.record.ops for value in selected(op, self.record, consumers)]
