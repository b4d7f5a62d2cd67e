"""A residual network that is learned in a moment, and all methods that learn, made quick."""

from __future__ import annotations

import torch
from function_net import layer
from torch import Tensor, nn

import bitsplit

SHORT = {"iterations": 60, "rate": 0.02}
LONGER = {"iterations": 200, "rate": 0.02, "step_iterations": 50}
METHODS = {
    "adaround": bitsplit.AdaRound(**SHORT),
    "brecq": bitsplit.Brecq(**SHORT, step_iterations=20),
    "brecq by layers": bitsplit.Brecq(**SHORT, step_iterations=20, unit="layer"),
    "brecq fisher": bitsplit.Brecq(**SHORT, step_iterations=20, loss="fisher"),
    "brecq with scales": bitsplit.Brecq(**SHORT, step_iterations=20, scale_rate=1e-3, bias_rate=1e-3),
    "flexround": bitsplit.FlexRound(iterations=60, rate=5e-3),
    "brecq by stages": bitsplit.Brecq(**LONGER, unit="stage"),
    "brecq at once": bitsplit.Brecq(**LONGER, unit="net"),
    "qdrop in bf16": bitsplit.QDrop(iterations=150, rate=0.02, step_rate=1e-3, precision="bf16"),
    "qdrop in fp32 by stages": bitsplit.QDrop(
        iterations=150, rate=0.02, step_rate=1e-3, precision="fp32", unit="stage"
    ),
    "qdrop": bitsplit.QDrop(iterations=150, rate=0.02, step_rate=1e-3),
}


class Block(nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.one = layer(channels, channels)
        self.two = layer(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + x)


class Residual(nn.Module):
    """A stem, two residual blocks, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layer(3, 8)
        self.first = Block()
        self.second = Block()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(self.first(torch.relu(self.stem(x)))).mean((2, 3)))


def same(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def error(quantized: nn.Module, model: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float((quantized(images) - model(images)).square().mean())


# What learns at once, by granularity.
PIECES = {
    "layer": ["stem", "first.one", "first.two", "second.one", "second.two", "fc"],
    "block": ["stem", "first", "second", "fc"],
    "stage": ["stem", "first to second", "fc"],
    "net": ["network"],
}
