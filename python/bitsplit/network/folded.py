"""A norm after it has been folded into the layer before it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class FoldedNorm:
    """Mixed into a norm's class once the layer before it does its work: the input passes through.

    Parameters, statistics and ``state_dict`` keys stay as they were, for whoever needs to know what the
    output should look like.  Modules inside the norm (the activation of norms that bring one) still act, in
    order.
    """

    running_var: Tensor
    eps: float

    def forward(self, *args: Tensor, **named: Tensor) -> Tensor:
        """x, Tensor[B, C, ...], through the norm's inner modules, unchanged when it has none."""
        x = self.read(args, named)
        for child in self.children():
            x = child(x)
        return x

    @staticmethod
    def read(args: tuple, named: dict[str, Any]) -> Tensor:
        """What is normalised of what a norm is called with."""
        return next(value for value in (*args, *named.values()) if isinstance(value, Tensor))

    @property
    def reference_gain(self) -> Tensor:
        """What every channel is multiplied with, as learned in training: Tensor[C]."""
        weight = getattr(self, "weight", None)
        return torch.ones_like(self.running_var) if weight is None else weight.detach()

    @property
    def reference_mean(self) -> Tensor:
        """The mean of every channel before the activation, as learned in training: Tensor[C]."""
        bias = getattr(self, "bias", None)
        return torch.zeros_like(self.running_var) if bias is None else bias.detach()

    @property
    def reference_std(self) -> Tensor:
        """The standard deviation of every channel, likewise: Tensor[C]."""
        return self.reference_gain.abs() * torch.sqrt(self.running_var / (self.running_var + self.eps))

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        return _empty_folded, (type(self).__mro__[2],), self.__dict__


@cache
def folded_class(base: type[nn.Module]) -> type[nn.Module]:
    """``base`` with its forward replaced by that of ``FoldedNorm``; one class for each base."""
    return type(f"Folded{base.__name__}", (FoldedNorm, base), {"__module__": __name__})


def _empty_folded(base: type[nn.Module]) -> nn.Module:
    """Where copying and unpickling start; the state follows."""
    kind = folded_class(base)
    return kind.__new__(kind)
