"""Pairs of layers where scaling a channel between them up and down again changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from bitsplit.network.model import Layer, Network
from bitsplit.network.operations import NORMS, operand
from bitsplit.network.record import Op
from bitsplit.network.ties import shared_parameters, used_elsewhere

# operations with f(s x) = s f(x) for s > 0: element by element, over the last axes, and mere views
_ELEMENTWISE = frozenset({"relu", "leaky_relu", "clone", "dropout", "detach", "alias"})
_POOLED_AXES = {
    "max_pool1d": 1,
    "avg_pool1d": 1,
    "adaptive_avg_pool1d": 1,
    "max_pool2d": 2,
    "max_pool2d_with_indices": 2,
    "avg_pool2d": 2,
    "_adaptive_avg_pool2d": 2,
}
_VIEWS = frozenset({"squeeze", "view", "_unsafe_view", "reshape", "flatten"})


@dataclass(frozen=True)
class LayerPair:
    """``second`` alone reads what ``first`` gives, channel by channel, through positively homogeneous
    functions.

    norm: the norm folded into ``first``, or None.
    """

    first: str
    norm: str | None
    second: str


def homogeneous_pairs(network: Network) -> list[LayerPair]:
    """All such pairs of layers that are called once and share no weight, in order of their first layer."""
    record = network.record
    norm_of = {norm.layer: norm.name for norm in network.norms if norm.folded}
    shared = shared_parameters(network.model) | used_elsewhere(record)
    once = {
        record.calls_of(name)[0]: name
        for name, layer in network.layers.items()
        if layer.calls == 1 and not {f"{name}.weight", f"{name}.bias"} & shared
    }
    reader_of = {record.calls[call].inputs[0]: name for call, name in once.items()}
    consumers = record.consumers()
    pairs = []
    for call, name in once.items():
        value = record.calls[call].outputs[0]
        axis = _channel_axis(network.layers[name], record.values[value].shape)
        second = _only_reader(value, axis, network, consumers, reader_of, name in norm_of)
        if second is not None and _channels_match(network, name, second):
            pairs.append(LayerPair(name, norm_of.get(name), second))
    return pairs


def _channel_axis(layer: Layer, shape: tuple[int, ...]) -> int:
    """Where the layer's input or output of this shape has its channels."""
    return len(shape) - 1 - layer.kind.spatial


def _only_reader(
    value: int,
    axis: int,
    network: Network,
    consumers: list[list[int]],
    reader_of: dict[int, str],
    past_norm: bool,
) -> str | None:
    """The one layer that reaches the channels of ``value`` along ``axis`` as its own.

    Homogeneous functions may lie between, with ``past_norm`` one norm.
    """
    record = network.record
    while value not in reader_of:
        if value in record.outputs or len(consumers[value]) != 1:
            return None
        op = record.ops[consumers[value][0]]
        if op.name in NORMS and past_norm:
            past_norm = False
        else:
            kept = _axis_after(op, axis, record.values[value].shape, record.values[op.outputs[0]].shape)
            if kept is None:
                return None
            axis = kept
        value = op.outputs[0]
    second = reader_of[value]
    is_alone = value not in record.outputs and len(consumers[value]) == 1
    reads_it = axis == _channel_axis(network.layers[second], record.values[value].shape)
    return second if is_alone and reads_it else None


def _axis_after(op: Op, axis: int, before: tuple[int, ...], after: tuple[int, ...]) -> int | None:
    """Where the channels along ``axis`` lie behind ``op``; None when it mixes them or is not homogeneous."""
    if op.name in _ELEMENTWISE:
        return axis
    if op.name in _POOLED_AXES:
        return axis if axis < len(before) - _POOLED_AXES[op.name] else None
    if op.name == "mean":
        dims = {dim % len(before) for dim in operand(op, 1, "dim") or [axis]}
        gone = 0 if operand(op, 2, "keepdim") else sum(dim < axis for dim in dims)
        return None if axis in dims else axis - gone
    if op.name in _VIEWS and before[: axis + 1] == after[: axis + 1]:
        return axis
    if op.name in _VIEWS and axis == len(before) - 1 and before[-1:] == after[-1:]:
        return len(after) - 1
    return None


def _channels_match(network: Network, first: str, second: str) -> bool:
    outputs = network.layers[first].kind.matrix(
        network.layers[first].module, network.layers[first].module.weight
    )
    reader = network.layers[second].module
    inputs = reader.in_features if hasattr(reader, "in_features") else reader.in_channels
    return outputs.shape[:2].numel() == inputs
