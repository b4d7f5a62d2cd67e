"""A small network of several kinds of layers, and whether two results are the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import bitsplit


class Small(nn.Module):
    """A residual block, a depthwise and a strided convolution, norms, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.depthwise(x) + x)
        return self.fc(torch.relu(self.down(x)).mean((2, 3)))


def small_net() -> nn.Module:
    """In evaluation mode, with norms that have seen data."""
    small = Small()
    norm = small.stem[1]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return small.eval()


def same_codes(left: nn.Module, right: nn.Module) -> bool:
    a, b = bitsplit.codes(left), bitsplit.codes(right)
    return a.keys() == b.keys() and all(
        torch.equal(a[name].codes, b[name].codes) and torch.equal(a[name].scale, b[name].scale) for name in a
    )
