"""Random layers in matrix form, for the tests of the split solvers, and solvers on symmetric levels."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsplit.ops import split
from bitsplit.ops.levels import level_choices, levels_of
from bitsplit.ops.split import Descent, objective


class Layer:
    """A random layer in matrix form, float64: inputs x [g, N, K], weights [g, M, N], second moments."""

    def __init__(
        self, groups: int = 1, rows: int = 5, columns: int = 30, patches: int = 90, mix: float = 0.0
    ):
        x = torch.randn(groups, columns, patches, dtype=torch.float64)
        self.x = x + mix * (x.roll(1, 1) + x.mean(1, keepdim=True))
        self.weight = torch.randn(groups, rows, columns, dtype=torch.float64)
        self.measure()

    def measure(self) -> Layer:
        """Recompute what follows from x and weight."""
        self.y = self.weight @ self.x
        self.gram, self.cross = self.x @ self.x.mT, self.x @ self.y.mT
        self.energy = self.y.square().sum(2)
        return self

    def moments(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        return self.gram.to(dtype), self.cross.to(dtype)

    def objective(self, codes: Tensor, scale: Tensor) -> Tensor:
        return objective(codes, scale, self.gram, self.cross, self.energy)


def symmetric(scale: Tensor, bits: int) -> Tensor:
    """Symmetric levels for all rows of ``scale`` [g, R]."""
    return levels_of(level_choices(bits), scale)


def polish(
    codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, bits: int, rounds: int = 100
) -> Descent:
    """The operator on symmetric levels, with the arguments of ``planes``."""
    return split.polish(codes, scale, gram, cross, symmetric(scale, bits), rounds)


def search(
    codes: Tensor, scale: Tensor, gram: Tensor, cross: Tensor, bits: int, steps: int, seed: int = 0
) -> Descent:
    """The operator on symmetric levels."""
    return split.search(codes, scale, gram, cross, symmetric(scale, bits), steps, seed)


def feedback(target: Tensor, scale: Tensor, factor: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The operator on symmetric levels."""
    return split.feedback(target, scale, factor, symmetric(scale, bits))
