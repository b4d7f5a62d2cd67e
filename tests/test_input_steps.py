"""Of which network the values are that the step of an input quantizer is fitted to."""

from __future__ import annotations

import pytest
import torch
from function_net import three_layers
from torch import Tensor, nn

import bitsplit
from bitsplit.methods.activations import MseActivations
from bitsplit.methods.statistics import InputSample
from bitsplit.quantizers import Grid

IMAGES = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
LAYERS = ("2", "4")


def step(values: Tensor, p: float = 2.0) -> Tensor:
    """What `mse` gives for all of them."""
    values = values.flatten()
    sample = InputSample(values, values.amin(0, True), values.amax(0, True))
    return MseActivations(p=p).fit(sample, Grid.unsigned(2))[0]


def steps_of(model: nn.Module) -> list[Tensor]:
    return [model.get_submodule(name).input_quantizer.scale for name in LAYERS]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return three_layers()


@pytest.fixture
def expected(net) -> list[Tensor]:
    """From what arrives in the float network."""
    return [step(net[: int(name)](IMAGES).detach()) for name in LAYERS]


def quantized(net: nn.Module, method) -> nn.Module:
    return bitsplit.quantize(net, IMAGES, method, weights=2, activations=2, policy="all")


def test_of_the_float_network_when_asked_for(net, expected):
    assert steps_of(quantized(net, bitsplit.Mse(activations=MseActivations(inputs="float")))) == expected


def test_of_the_quantized_one_otherwise(net, expected):
    found = quantized(net, "mse")
    assert all(a != b for a, b in zip(steps_of(found), expected, strict=True))
    arriving = found[:2](found[0].input_quantizer(IMAGES))
    assert steps_of(found)[0] == step(arriving.detach())


@pytest.mark.parametrize("inputs", ["float", "quantized"])
def test_of_either_when_activations_come_last(net, expected, inputs):
    last = {"activations_last": True, "error_compensation": False}
    method = bitsplit.BitSplit(**last, activations=MseActivations(inputs=inputs))
    assert (steps_of(quantized(net, method)) == expected) == (inputs == "float")


@pytest.mark.parametrize(
    ("method", "learns_steps"),
    [
        (bitsplit.QDrop(iterations=0), True),
        (bitsplit.Brecq(iterations=0, step_iterations=0), True),
        (bitsplit.AdaRound(iterations=0), False),
        (bitsplit.FlexRound(iterations=0), False),
    ],
)
def test_steps_that_are_learned_start_from_the_float_network(net, method, learns_steps):
    of_float = [step(net[: int(name)](IMAGES).detach(), p=2.4) for name in LAYERS]
    assert (steps_of(quantized(net, method)) == of_float) == learns_steps
