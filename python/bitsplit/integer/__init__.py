"""Power-of-two networks in integer arithmetic: the reference for what hardware with shifts computes."""

from bitsplit.integer.network import IntegerNetwork
from bitsplit.integer.tensor import IntegerTensor

__all__ = ["IntegerNetwork", "IntegerTensor"]
