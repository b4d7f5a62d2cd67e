"""Which inputs of layers are proven never to be negative, and which are not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from function_net import Net, images, layer
from torch import Tensor

from bitsplit.network import observe

NONNEGATIVE = {
    "functional relu": F.relu,
    "relu in place": lambda x: F.relu(x.clone(), inplace=True),
    "method in place": lambda x: x.clone().relu_(),
    "relu6": F.relu6,
    "hardtanh 0..1": lambda x: F.hardtanh(x, 0.0, 1.0),
    "clamp": lambda x: x.clamp(min=0),
    "clamp by name": lambda x: torch.clamp(x, max=5, min=0.5),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "sigmoid": torch.sigmoid,
    "hard sigmoid": F.hardsigmoid,
    "softmax": lambda x: x.softmax(1),
    "square": lambda x: x**2,
    "absolute": torch.abs,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "max pool": lambda x: F.max_pool2d(F.relu(x), 2),
    "average pool": lambda x: F.avg_pool2d(F.relu(x), 3, 1, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(F.relu(x), 3),
    "mean": lambda x: F.relu(x).mean((2, 3), keepdim=True),
    "concatenation": lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:].sigmoid()], 1),
    "sum of two": lambda x: F.relu(x) + x.sigmoid(),
    "sum in place": lambda x: F.relu(x).add_(x.sigmoid()),
    "product": lambda x: F.relu(x) * x.sigmoid(),
    "scaled": lambda x: F.relu(x) * 2 / 3 + 1,
    "padding": lambda x: F.pad(F.relu(x), (1, 1)),
    "reflection": lambda x: F.pad(F.relu(x), (1, 1, 1, 1), mode="reflect"),
    "dropout in evaluation": lambda x: F.dropout(F.relu(x), training=False),
    "shuffled channels": lambda x: F.relu(x).view(2, 2, 2, 6, 6).transpose(1, 2).reshape(2, 4, 6, 6),
    "slice": lambda x: F.relu(x).roll(1, 2).flip(3),
    "nearest": lambda x: F.interpolate(F.relu(x), scale_factor=2),
    "bilinear": lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="bilinear"),
    "written slices": lambda x: _filled(x, F.relu, torch.sigmoid),
}

NOT_PROVEN = {
    "nothing": lambda x: x,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "leaky relu": F.leaky_relu,
    "clamp": lambda x: x.clamp(min=-1),
    "clamp from above": lambda x: x.clamp(max=3),
    "cube": lambda x: x**3,
    "sum with anything": lambda x: F.relu(x) + x,
    "difference": lambda x: F.relu(x) - x.sigmoid(),
    "negative factor": lambda x: F.relu(x) * -1,
    "negative summand": lambda x: F.relu(x) - 1,
    "negative padding value": lambda x: F.pad(F.relu(x), (1, 1), value=-1.0),
    "concatenation": lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:]], 1),
    "bicubic": lambda x: F.interpolate(F.relu(x), scale_factor=2, mode="bicubic"),
    "changed in place after": lambda x: F.relu(x).sub_(1),
    "changed through a view": lambda x: _changed(x),
    "written slices": lambda x: _filled(x, F.relu, torch.tanh),
    "written halves": lambda x: _written_by_halves(x),
}


def _filled(x: Tensor, first, second) -> Tensor:
    y = torch.empty_like(x).zero_()
    y[:, :2] = first(x[:, :2])
    y[:, 2:] = second(x[:, 2:])
    return y


def _written_by_halves(x: Tensor) -> Tensor:
    """The halves are cut out before they are written."""
    y = torch.zeros_like(x)
    left, right = y.chunk(2, 1)
    left.copy_(x[:, :2])
    right.copy_(F.relu(x[:, 2:]))
    return y


def _changed(x: Tensor) -> Tensor:
    y = F.relu(x)
    y.view(-1)[:3].sub_(100)
    return y


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_inputs_that_are_proven_nonnegative(name: str) -> None:
    function = NONNEGATIVE[name]
    assert float(function(images()).min()) >= 0
    network = observe(Net(lambda m, x: m.conv(function(x)), conv=layer()), images())
    assert network.layers["conv"].nonnegative


@pytest.mark.parametrize("name", NOT_PROVEN)
def test_inputs_that_may_be_negative(name: str) -> None:
    function = NOT_PROVEN[name]
    assert float(function(3 * images()).min()) < 0
    network = observe(Net(lambda m, x: m.conv(function(x)), conv=layer()), images())
    assert not network.layers["conv"].nonnegative


def test_one_call_with_negative_input_is_enough() -> None:
    model = Net(lambda m, x: m.conv(F.relu(m.conv(x))), conv=layer())
    assert not observe(model, images()).layers["conv"].nonnegative
