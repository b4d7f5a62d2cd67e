"""Which normalisation can be folded into which layer, decided by the flow of data."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bitsplit.network.facts import Facts
from bitsplit.network.model import Norm
from bitsplit.network.operations import REARRANGING
from bitsplit.network.record import Call
from bitsplit.network.ties import shared_parameters, used_elsewhere
from bitsplit.network.usage import Usage


def has_statistics(module: nn.Module) -> bool:
    """Whether ``module`` normalizes channels by stored statistics, with or without an activation behind.

    Known by its attributes, so that frozen norms and the norms of other libraries count too.
    """
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return isinstance(mean, Tensor) and isinstance(variance, Tensor) and hasattr(module, "eps")


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a normalisation of any kind."""
    return isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)) or has_statistics(module)


def find_norms(model: nn.Module, usages: list[Usage], facts: Facts) -> list[Norm]:
    """Every norm of ``model``: the layer it folds into, or why it stays."""
    givers = {
        facts.record.calls[call].outputs[0]: usage
        for usage in usages
        if not usage.reason
        for call in usage.calls
    }
    shared = shared_parameters(model) | used_elsewhere(facts.record)
    found = []
    for name, module in model.named_modules():
        if is_norm(module):
            layer, reason = _layer_of(name, module, givers, shared, facts)
            found.append(Norm(name, layer, reason, has_statistics(module)))
    return found


def _layer_of(
    name: str, module: nn.Module, givers: dict[int, Usage], shared: set[str], facts: Facts
) -> tuple[str | None, str]:
    if not has_statistics(module):
        if getattr(module, "track_running_stats", None) is False and isinstance(
            module, nn.modules.batchnorm._BatchNorm
        ):
            return None, "it keeps no running statistics"
        return None, "its statistics come from each image"
    calls = [facts.record.calls[number] for number in facts.record.calls_of(name)]
    if not calls:
        return None, "never reached by the forward"
    layers = {_giver(call, givers, facts) for call in calls}
    if len(layers) > 1:
        return None, "it is called behind several layers"
    (usage,) = layers
    if usage is None:
        return None, f"its input comes from {_origin(calls[0], facts)}, not from one layer"
    reason = _why_other_axis(usage, calls, facts) or _why_not_only_reader(usage, name, calls, facts)
    if not reason and {f"{usage.name}.weight", f"{usage.name}.bias"} & shared:
        reason = f"{usage.name} shares its weight, or something else uses it"
    return (None, reason) if reason else (usage.name, "")


def _giver(call: Call, givers: dict[int, Usage], facts: Facts) -> Usage | None:
    """The layer whose output the norm reads; behind a linear layer views that keep the last axis may lie."""
    if len(call.inputs) != 1:
        return None
    value = call.inputs[0]
    while value not in givers:
        producer = facts.record.values[value].producer
        if producer is None:
            return None
        op = facts.record.ops[producer]
        source = op.inputs[0] if op.inputs else None
        if op.name not in ("view", "_unsafe_view", "clone") or len(facts.record.values[value].shape) != 2:
            return None
        if facts.record.values[source].shape[-1:] != facts.record.values[value].shape[-1:]:
            return None
        value = source
    usage = givers[value]
    return usage if value == call.inputs[0] or usage.kind.spatial == 0 else None


def _why_other_axis(usage: Usage, calls: list[Call], facts: Facts) -> str:
    """A norm works on the second axis; a linear layer's channels are the last one."""
    dims = {len(facts.record.values[call.inputs[0]].shape) for call in calls}
    if usage.kind.spatial > 0 or dims == {2}:
        return ""
    return f"it normalizes another axis than the channels of {usage.name}"


def _why_not_only_reader(usage: Usage, name: str, calls: list[Call], facts: Facts) -> str:
    """The reason why the layer's output is not for the norm alone, or ''."""
    if len(usage.calls) != len(calls):
        return f"{usage.name} is called {len(usage.calls)} times, the norm {len(calls)} times"
    inside = {op for call in calls for op in facts.record.ops_in(call)}
    for number in usage.calls:
        layer_call = facts.record.calls[number]
        pending = [v for op in facts.record.ops_in(layer_call) for v in facts.record.ops[op].outputs]
        while pending:
            value = pending.pop()
            if value in facts.record.outputs:
                return f"the output of {usage.name} is an output of the network too"
            for reader in facts.consumers[value]:
                if layer_call.first <= reader < layer_call.last or reader in inside:
                    continue
                op = facts.record.ops[reader]
                if op.name not in REARRANGING or not _leads_into(op.outputs, inside, facts):
                    return f"the output of {usage.name} has other readers ({op.name})"
    return ""


def _leads_into(values: tuple[int, ...], inside: set[int], facts: Facts) -> bool:
    """Whether ``values`` are read, perhaps through views, by the norm's operations and nothing else."""
    for value in values:
        if value in facts.record.outputs or not facts.consumers[value]:
            return False
        for reader in facts.consumers[value]:
            op = facts.record.ops[reader]
            if reader not in inside and not (
                op.name in REARRANGING and _leads_into(op.outputs, inside, facts)
            ):
                return False
    return True


def _origin(call: Call, facts: Facts) -> str:
    if not call.inputs:
        return "elsewhere"
    value = facts.record.values[call.inputs[0]]
    return (
        f"the operation {facts.record.ops[value.producer].name}"
        if value.producer is not None
        else f"an {value.origin}"
    )
