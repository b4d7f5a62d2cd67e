"""Which layers a layer's input comes from."""

from __future__ import annotations

from bitsplit.network.facts import Facts
from bitsplit.network.model import Network

_ELSEWHERE = ""  # the network's input, or weights that belong to no layer


def fed_only_by(network: Network, givers: set[str]) -> set[str]:
    """Names of the layers that read, in all their calls, what layers of ``givers`` gave and nothing else.

    Between them may lie anything without weights of its own product: activations, pooling, norms, sums.
    """
    record = network.record
    owners = {
        op: name
        for name in network.layers
        for number in record.calls_of(name)
        for op in record.ops_in(record.calls[number])
    }
    products = Facts(record).products
    sources = [frozenset() if v.origin != "input" else frozenset([_ELSEWHERE]) for v in record.values]
    for number, op in enumerate(record.ops):
        if number in products and products[number].weight is not None:
            found = frozenset([owners.get(number, _ELSEWHERE)])
        else:
            found = frozenset().union(*(sources[value] for value in op.inputs))
        for value in op.outputs:
            sources[value] = found
    read = {
        name: frozenset().union(
            *(sources[value] for number in record.calls_of(name) for value in record.calls[number].inputs)
        )
        for name in network.layers
    }
    return {name for name, found in read.items() if found and found <= givers}
