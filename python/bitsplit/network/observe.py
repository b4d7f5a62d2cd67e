"""See what a model is by running it once."""

from __future__ import annotations

from typing import Any

from torch import nn

from bitsplit.errors import ModelError
from bitsplit.network.coverage import find_uncovered, product_macs
from bitsplit.network.facts import Facts
from bitsplit.network.model import Layer, Network
from bitsplit.network.norms import find_norms
from bitsplit.network.record import Call, Record
from bitsplit.network.recorder import record_forward
from bitsplit.network.running import Step, default_step
from bitsplit.network.units import find_units
from bitsplit.network.usage import Usage, find_usages


def observe(model: nn.Module, batch: Any, step: Step | None = None) -> Network:
    """The facts about ``model`` that one forward of ``batch`` shows.

    batch: whatever ``step(model, batch)`` takes, by default ``model(batch)``; one or two images are enough.
    The forward runs in evaluation mode and without gradients; the model is left as it was.
    """
    step = step or default_step
    facts = Facts(record_forward(model, batch, step))
    usages = find_usages(model, facts)
    norms = find_norms(model, usages, facts)
    units = find_units(model, usages, facts)
    layers = _layers([usage for usage in usages if not usage.reason], norms, units, facts)
    if not layers and not usages:
        raise ModelError("the model has no convolution and no linear layer")
    return Network(
        model=model,
        layers=layers,
        units=units,
        norms=norms,
        uncovered=find_uncovered(model, usages, facts),
        computed=[usage.name for usage in usages if usage.computed],
        record=facts.record,
        batch=batch,
        step=step,
    )


def _layers(usages: list[Usage], norms: list, units: list, facts: Facts) -> dict[str, Layer]:
    record = facts.record
    unit_of = {layer: unit.name for unit in units for layer in unit.layers}
    keys = _input_keys(usages, record)
    last = _last_products(facts)
    layers = {}
    for usage in usages:
        calls = [record.calls[number] for number in usage.calls]
        layers[usage.name] = Layer(
            name=usage.name,
            module=usage.module,
            calls=len(calls),
            unit=unit_of[usage.name],
            input_key=keys[usage.name],
            nonnegative=all(facts.nonnegative[call.inputs[0]] for call in calls),
            is_first=any(not facts.weighted[call.inputs[0]] for call in calls),
            is_last=any(product in last for product in usage.products),
            arguments=_arguments(calls, {unit.name for unit in units}, record),
            input_shape=record.values[calls[0].inputs[0]].shape,
            output_shape=record.values[calls[0].outputs[0]].shape,
            macs=sum(product_macs(product, facts) for product in usage.products) // record.batch_size,
        )
    return layers


def _arguments(calls: list[Call], units: set[str], record: Record) -> dict[str, int]:
    """The units called with what these calls of a layer read, and where that stands among their inputs."""
    found: dict[str, set[int | None]] = {}
    for call in calls:
        for number in record.ancestors(call.parent):
            around = record.calls[number]
            if around.name in units:
                known = call.inputs[0] in around.inputs
                position = around.inputs.index(call.inputs[0]) if known else None
                found.setdefault(around.name, set()).add(position)
    single = {name: next(iter(positions)) for name, positions in found.items() if len(positions) == 1}
    return {name: position for name, position in single.items() if position is not None}


def _input_keys(usages: list[Usage], record: Record) -> dict[str, int]:
    """One number per group of layers that read the same tensors in all of their calls.

    A layer called on further tensors stays alone: its input has another range.
    """
    numbers: dict[frozenset[int], int] = {}
    keys = {}
    for usage in usages:
        values = frozenset(record.calls[number].inputs[0] for number in usage.calls)
        keys[usage.name] = numbers.setdefault(values, len(numbers))
    return keys


def _last_products(facts: Facts) -> set[int]:
    """The products with weights that no other such product separates from an output of the network.

    Where residual branches are added the one that ran last counts.
    """
    found: dict[int, frozenset[int]] = {}
    for number, op in enumerate(facts.record.ops):
        product = facts.products.get(number)
        sources = [found.get(v, frozenset()) for v in op.inputs]
        last = frozenset().union(*sources)
        if product is not None and product.weight is not None and facts.data[product.data]:
            last = frozenset([number])
        elif facts.is_branch_addition(op) and last:
            last = frozenset([max(last)])
        found.update(dict.fromkeys(op.outputs, last))
    return set().union(*(found.get(v, frozenset()) for v in facts.record.outputs))
