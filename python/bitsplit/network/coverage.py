"""What has weights, or multiplies, and will not be quantized: listed by name and reason, never silent."""

from __future__ import annotations

import math
from collections import defaultdict

from torch import nn

from bitsplit.network.facts import Facts, Product
from bitsplit.network.model import Uncovered
from bitsplit.network.operations import HARMLESS
from bitsplit.network.usage import Usage

_FUNCTIONAL = {
    "convolution": "functional convolution",
    "embedding": "embedding",
    "deform_conv2d": "deformable convolution",
}


def find_uncovered(model: nn.Module, usages: list[Usage], facts: Facts) -> list[Uncovered]:
    """Refused layers, products with weights outside any layer, products of activations, unused weights."""
    of_layers = {op for usage in usages for op in usage.products}
    functional = _functional_products(of_layers, facts)
    macs = {entry.name: entry.macs for entry in functional}
    refused = [usage for usage in usages if usage.reason]
    entries = [
        Uncovered(
            usage.name,
            usage.kind.name,
            usage.reason,
            _macs(usage.products, facts) or macs.get(f"{usage.name}.weight", 0),
        )
        for usage in refused
    ]
    weights = {f"{usage.name}.weight" for usage in refused}
    entries += [entry for entry in functional if entry.name not in weights]
    return entries + _unknown(model, facts) + _unused(model, usages, facts)


def _functional_products(of_layers: set[int], facts: Facts) -> list[Uncovered]:
    grouped: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for number, product in facts.products.items():
        if number not in of_layers and (product.weight is not None or facts.data[product.data]):
            grouped[_described(product, facts)].append(number)
    return [
        Uncovered(name, what, reason, _macs(tuple(ops), facts))
        for (name, what, reason), ops in grouped.items()
    ]


def _described(product: Product, facts: Facts) -> tuple[str, str, str]:
    op = facts.record.ops[product.op]
    where = "the step" if op.call is None else facts.record.calls[op.call].name or "the model"
    if product.weight is None and op.name == "convolution":
        return where, "functional convolution", "its weight depends on the images"
    if product.weight is None:
        return where, "product of activations", "both factors depend on the images (as in attention)"
    name = ", ".join(sorted(facts.weights[product.weight]))
    what = _FUNCTIONAL.get(op.name, "matrix product")
    return name, what, f"the parameter is used by {where} directly, not through a layer"


def _unknown(model: nn.Module, facts: Facts) -> list[Uncovered]:
    """Operations that use matrices of weights on data and are neither products nor known not to multiply."""
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    found: dict[tuple[str, str], None] = {}
    for number, op in enumerate(facts.record.ops):
        if number in facts.products or op.name in HARMLESS or not any(facts.data[v] for v in op.outputs):
            continue
        weights = [facts.weights[v] & matrices for v in op.inputs if not facts.data[v]]
        names = ", ".join(sorted(frozenset().union(*weights)))
        if names:
            found[names, op.name] = None
    reason = "its weights are used by an operation that no kind of layer stands for"
    return [Uncovered(names, f"operation {op}", reason) for names, op in found]


def _unused(model: nn.Module, usages: list[Usage], facts: Facts) -> list[Uncovered]:
    """Parameters with two or more axes that no operation has read, those of listed layers left out."""
    read = {value for op in facts.record.ops for value in op.inputs}
    seen = {
        v.name for number, v in enumerate(facts.record.values) if v.origin == "parameter" and number in read
    }
    prefixes = tuple(f"{usage.name}." for usage in usages)
    return [
        Uncovered(name, "parameter", "never read by the forward")
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and name not in seen and not name.startswith(prefixes)
    ]


def _macs(products: tuple[int, ...], facts: Facts) -> int:
    """Multiplications per image of the products with these numbers."""
    return sum(product_macs(number, facts) for number in products) // facts.record.batch_size


def product_macs(number: int, facts: Facts) -> int:
    """Multiplications of one product, the whole batch."""
    op = facts.record.ops[number]
    shapes = [facts.record.values[v].shape for v in op.inputs]
    out = math.prod(facts.record.values[op.outputs[0]].shape) if op.outputs else 0
    if op.name in ("convolution", "deform_conv2d"):
        weight = shapes[1]
        transposed = op.name == "convolution" and op.args[6]
        return (math.prod(shapes[0]) if transposed else out) * math.prod(weight[1:])
    if op.name == "embedding":
        return 0
    if op.name.startswith("_scaled_dot_product"):
        queries, keys = shapes[0], shapes[1]
        return 2 * math.prod(queries) * keys[-2]
    left = shapes[1] if op.name.startswith(("add", "badd")) else shapes[0]
    return out * left[-1]
