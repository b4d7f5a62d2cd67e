"""What a layer did when it was called: decided by the product it ran, not by its class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bitsplit.network.facts import Facts, Product
from bitsplit.network.layers import LayerKind, kind_of
from bitsplit.network.operations import PADDING, REARRANGING, operand, refs
from bitsplit.network.product import has_plain_forward
from bitsplit.network.record import Call

COMPUTED_WEIGHT = "its weight is computed from its parameters"

# What torch shows of a convolution in inference mode, and nowhere else.
_UNDIVIDED = {f"{kind}{axes}d" for kind in ("conv", "conv_transpose") for axes in (1, 2, 3)}


@dataclass(frozen=True)
class Usage:
    """One module of a known kind and its calls.

    products: the numbers of the operations that are its work, one a call when it is a plain layer.
    reason: why it cannot be quantized, or ''.  computed: its weight is computed from parameters alone, so
    that ``bake_effective_weights`` would make it a plain layer.
    """

    name: str
    module: nn.Module
    kind: LayerKind
    calls: tuple[int, ...]
    products: tuple[int, ...]
    reason: str
    computed: bool = False


def find_usages(model: nn.Module, facts: Facts) -> list[Usage]:
    """Every module of a known kind, those reached first and in the order of their first call."""
    usages = [
        usage_of(name, module, kind, facts)
        for name, module in model.named_modules()
        if (kind := kind_of(module)) is not None
    ]
    never = len(facts.record.calls)
    return sorted(usages, key=lambda usage: usage.calls[0] if usage.calls else never)


def usage_of(name: str, module: nn.Module, kind: LayerKind, facts: Facts) -> Usage:
    """What the calls of ``module`` have shown."""
    calls = tuple(facts.record.calls_of(name))
    if not calls:
        return Usage(name, module, kind, (), (), _why_not_called(name, module, facts))
    products: list[int] = []
    reasons: list[str] = []
    computed = False
    for number in calls:
        call = facts.record.calls[number]
        found = [facts.products[op] for op in facts.record.ops_in(call) if op in facts.products]
        products += [product.op for product in found]
        reasons.append(_why_not_plain(name, module, kind, call, found, facts))
        computed |= reasons[-1] == COMPUTED_WEIGHT
    reason = next(filter(None, reasons), "")
    return Usage(name, module, kind, calls, tuple(products), reason, computed and reason == COMPUTED_WEIGHT)


def _why_not_called(name: str, module: nn.Module, facts: Facts) -> str:
    own = {f"{name}.{parameter}" if name else parameter for parameter, _ in module.named_parameters()}
    readers = [
        p.op for p in facts.products.values() if p.weight is not None and facts.weights[p.weight] & own
    ]
    if not readers:
        return "never reached by the forward"
    caller = facts.record.ops[readers[0]].call
    where = "the step" if caller is None else facts.record.calls[caller].name or "the model"
    return f"never called: {where} uses its weight directly"


def _why_not_plain(
    name: str, module: nn.Module, kind: LayerKind, call: Call, products: list[Product], facts: Facts
) -> str:
    """The reason why this call was not that of a plain layer, or ''."""
    if products and not any(facts.data[product.data] for product in products):
        return "its input does not depend on the images"
    products = [product for product in products if facts.data[product.data]]
    if not products and any(facts.record.ops[op].name in _UNDIVIDED for op in facts.record.ops_in(call)):
        return "it runs in torch.inference_mode, which hides its product: let the forward use torch.no_grad"
    if len(products) != 1:
        return f"its forward runs {len(products)} products, a plain layer one"
    product = products[0]
    if product.weight is None:
        return "its weight depends on the input"
    if len(call.inputs) != 1:
        return f"it takes {len(call.inputs)} tensors, a plain layer one"
    if not call.whole_output:
        return "it does not give one tensor"
    return (
        _why_other_geometry(module, kind, product, facts)
        or _why_other_input(module, call, product, facts)
        or _why_other_output(name, call, product, facts)
        or _why_other_weight(name, product, facts)
    )


def _why_other_geometry(module: nn.Module, kind: LayerKind, product: Product, facts: Facts) -> str:
    op = facts.record.ops[product.op]
    if kind.spatial == 0:
        return "" if op.name != "convolution" else "its forward runs a convolution"
    if op.name != "convolution":
        return f"its forward runs {op.name} instead of a convolution"
    stride, dilation, transposed, groups = (op.args[position] for position in (3, 5, 6, 8))
    shape = facts.record.values[product.weight].shape
    used = (tuple(stride), tuple(dilation), transposed, groups, shape)
    own = (
        tuple(module.stride),
        tuple(module.dilation),
        module.transposed,
        module.groups,
        tuple(module.weight.shape),
    )
    return "" if used == own else "its convolution has another geometry than its attributes say"


def _why_other_input(module: nn.Module, call: Call, product: Product, facts: Facts) -> str:
    if has_plain_forward(module) and getattr(module, "padding_mode", "zeros") == "circular":
        return ""  # torch pads so by copying slices, which cannot be followed back
    source = facts.back_through(product.data, REARRANGING | PADDING, call.first)
    if source == call.inputs[0]:
        return ""
    return f"its forward changes the input before the product{_made_by(source, facts)}"


def _why_other_output(name: str, call: Call, product: Product, facts: Facts) -> str:
    bias = f"{name}.bias" if name else "bias"
    value = call.outputs[0]
    while True:
        value = facts.back_through(value, REARRANGING, call.first)
        producer = facts.record.values[value].producer
        if producer == product.op:
            return ""
        if producer is None or not facts.adds_bias(facts.record.ops[producer], bias):
            return f"its forward changes the output after the product{_made_by(value, facts)}"
        value = refs(operand(facts.record.ops[producer], 0, "self"))[0]


def _why_other_weight(name: str, product: Product, facts: Facts) -> str:
    own = f"{name}.weight" if name else "weight"
    return "" if facts.same_as[product.weight] == own else COMPUTED_WEIGHT


def _made_by(value: int, facts: Facts) -> str:
    producer = facts.record.values[value].producer
    return "" if producer is None else f" ({facts.record.ops[producer].name})"
