"""Random layers in matrix form, for the tests of the split solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsplit.ops.split import objective


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
