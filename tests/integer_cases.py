"""Networks whose scales are powers of two, to be run in integers and beside their simulation."""

from __future__ import annotations

import torch
from function_net import Net, layer
from torch import Tensor, nn

import bitsplit


def quantized(model: nn.Module, images: Tensor, method="mse", **options) -> nn.Module:
    options = {"weights": 4, "activations": 4, "policy": "qdrop", "power_of_two": True} | options
    return bitsplit.quantize(model.eval(), images, method, **options)


def assert_same(model: nn.Module, images: Tensor, **options) -> bitsplit.IntegerNetwork:
    """Quantized, the network gives the same with floats and with integers, on other images than it saw."""
    simulated = quantized(model, images, **options)
    network = bitsplit.IntegerNetwork(simulated)
    other = 2 * torch.randn(7, *images.shape[1:])
    with torch.no_grad():
        wanted = simulated(other)
    assert torch.equal(network(other), wanted)
    assert network.beyond_float32 == ()
    assert wanted.std() > 0
    return network


def pooled(function):
    """Two convolutions with ``function`` between, a mean and a linear layer."""
    return Net(
        lambda m, x: m.fc(m.two(function(m.one(x))).mean((2, 3))),
        one=layer(3, 8), two=layer(8, 8), fc=nn.Linear(8, 5),
    )  # fmt: skip
