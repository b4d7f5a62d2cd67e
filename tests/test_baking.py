"""Layers that compute their weight become layers that store it, with the same outputs."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from bitsplit.network import bake_effective_weights, kind_of, observe
from bitsplit.network.baking import SamePaddedConv2d, made_plain, make_plain


class Standardised(nn.Conv2d):
    """Zero mean and unit variance for every filter, scaled by a gain."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1))

    def effective(self) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self.gain * (self.weight - mean) / (deviation + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.effective(), self.bias)


class StandardisedSame(Standardised):
    def forward(self, x: Tensor) -> Tensor:
        rows, columns = ((-(-n // 2) - 1) * 2 + 3 - n for n in x.shape[-2:])
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.effective(), self.bias, 2)


class Asymmetric(Standardised):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 0, 0, 0)), self.effective(), self.bias)


def wrapped(name: str) -> nn.Module:
    """A convolution and a linear layer with computed weights."""
    wrap = {
        "weight norm": parametrizations.weight_norm,
        "spectral norm": parametrizations.spectral_norm,
        "orthogonal": parametrizations.orthogonal,
        "old weight norm": weight_norm,
        "old spectral norm": spectral_norm,
    }[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(144, 5)))


WRAPPINGS = ["weight norm", "spectral norm", "orthogonal", "old weight norm", "old spectral norm"]


@pytest.mark.parametrize("name", WRAPPINGS)
def test_parametrised_layers_are_listed_then_baked(name: str) -> None:
    model, x = wrapped(name), torch.randn(2, 3, 8, 8)
    network = observe(model, x)
    assert network.layers == {} and network.computed == ["0", "3"]
    assert [entry.reason for entry in network.uncovered] == ["its weight is computed from its parameters"] * 2
    before = model.eval()(x)
    baked = bake_effective_weights(network)
    assert list(baked.layers) == ["0", "3"] and baked.uncovered == [] and baked.computed == []
    assert torch.allclose(model(x), before, atol=1e-6)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert type(model[0]) is nn.Conv2d and type(model[3]) is nn.Linear
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@pytest.mark.parametrize("size", [8, 9])
def test_standardised_convolutions_with_and_without_padding_of_their_own(size: int) -> None:
    model = nn.Sequential(Standardised(3, 4, 3, padding=1), nn.ReLU(), StandardisedSame(4, 5, 3, stride=2))
    x = torch.randn(2, 3, size, size)
    before = model.eval()(x)
    effective = model[0].effective().detach()
    network = bake_effective_weights(observe(model, x))
    assert list(network.layers) == ["0", "2"]
    assert torch.allclose(model(x), before, atol=1e-6) and torch.allclose(model[0].weight, effective)
    assert type(model[0]) is nn.Conv2d and type(model[2]) is SamePaddedConv2d
    assert made_plain(model) == {"0": "plain", "2": "same"}
    x = torch.randn(2, 4, size, size)
    columns = kind_of(model[2]).columns(model[2], x, model[2](x))
    assert columns.out_spatial == columns.y.shape[2:]


def test_the_form_can_be_made_again_without_data() -> None:
    model = nn.Sequential(Standardised(3, 4, 3, padding=1), nn.ReLU(), StandardisedSame(4, 5, 3, stride=2))
    fresh = copy.deepcopy(model)
    x = torch.randn(2, 3, 9, 9)
    bake_effective_weights(observe(model.eval(), x))
    for name, form in made_plain(model).items():
        make_plain(fresh.get_submodule(name), form)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_padding_that_no_plain_layer_has_leaves_the_layer_uncovered() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Asymmetric(3, 4, (1, 3)))
    network = bake_effective_weights(observe(model, torch.randn(2, 3, 6, 6)))
    assert list(network.layers) == ["0"] and network.computed == ["1"]
    assert type(model[1]) is Asymmetric
    assert [entry.name for entry in network.uncovered] == ["1"]


def test_networks_without_computed_weights_are_returned_as_they_are() -> None:
    network = observe(nn.Sequential(nn.Conv2d(3, 3, 1)), torch.randn(1, 3, 4, 4))
    assert bake_effective_weights(network) is network


def test_timms_standardised_convolutions() -> None:
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        layers.StdConv2d(3, 4, 3, padding=1),
        layers.StdConv2dSame(4, 4, 3, stride=2),
        layers.ScaledStdConv2d(4, 4, 3, padding=1),
        layers.ScaledStdConv2dSame(4, 4, 3, stride=2),
    ).eval()
    x = torch.randn(2, 3, 16, 16)
    before = model(x)
    network = bake_effective_weights(observe(model, x))
    assert list(network.layers) == ["0", "1", "2", "3"]
    assert torch.allclose(model(x), before, atol=1e-6)
