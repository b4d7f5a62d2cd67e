"""Images are made for every model that real data work with; where they cannot be, the error says why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bitsplit

SIZE = (3, 6, 6)
FEW = bitsplit.Distilled(images=4, size=SIZE, iterations=2, batch=4)


class Small(nn.Module):
    """Two convolutions with a batch norm between them."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu()).mean((2, 3))


@pytest.fixture
def small() -> nn.Module:
    return Small().eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_weight_norm_after_a_run(small):
    expected = FEW.make(small, 0)
    nn.utils.weight_norm(small.first)
    small(torch.zeros(1, *SIZE))  # its weight has a history now
    torch.testing.assert_close(FEW.make(small, 0), expected)
    bitsplit.quantize(small, FEW, "mse")
