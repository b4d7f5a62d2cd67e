"""Pairs of layers where scaling a channel between them up and down again changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from bitsplit.network.model import Network
from bitsplit.network.operations import NORMS
from bitsplit.network.record import Record

# operations with f(s x) = s f(x) for s > 0 that leave every channel where it is
_HOMOGENEOUS = frozenset(
    {
        "relu",
        "leaky_relu",
        "max_pool1d",
        "max_pool2d",
        "max_pool2d_with_indices",
        "avg_pool1d",
        "avg_pool2d",
        "mean",
        "clone",
        "dropout",
        "_adaptive_avg_pool2d",
        "adaptive_avg_pool1d",
        "squeeze",
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "detach",
        "alias",
    }
)


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
    """All such pairs of layers that are called once, in execution order of their first layer."""
    record = network.record
    norm_of = {norm.layer: norm.name for norm in network.norms if norm.folded}
    once = {record.calls_of(name)[0]: name for name, layer in network.layers.items() if layer.calls == 1}
    reader_of = {record.calls[call].inputs[0]: name for call, name in once.items()}
    consumers = record.consumers()
    pairs = []
    for call, name in once.items():
        second = _only_reader(record.calls[call].outputs[0], record, consumers, reader_of, name in norm_of)
        if second is not None and _channels_match(network, name, second):
            pairs.append(LayerPair(name, norm_of.get(name), second))
    return pairs


def _only_reader(
    value: int, record: Record, consumers: list[list[int]], reader_of: dict[int, str], past_norm: bool
) -> str | None:
    """The one layer that ``value`` reaches: homogeneous functions between, with ``past_norm`` one norm."""
    while value not in reader_of:
        if value in record.outputs or len(consumers[value]) != 1:
            return None
        op = record.ops[consumers[value][0]]
        if op.name in NORMS and past_norm:
            past_norm = False
        elif op.name not in _HOMOGENEOUS:
            return None
        value = op.outputs[0]
    is_alone = value not in record.outputs and len(consumers[value]) == 1
    return reader_of[value] if is_alone else None


def _channels_match(network: Network, first: str, second: str) -> bool:
    outputs = network.layers[first].kind.matrix(
        network.layers[first].module, network.layers[first].module.weight
    )
    reader = network.layers[second].module
    inputs = reader.in_features if hasattr(reader, "in_features") else reader.in_channels
    return outputs.shape[:2].numel() == inputs
