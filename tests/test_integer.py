"""Networks in integers give what the simulated ones give, bit for bit."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from function_net import Net, layer
from integer_cases import assert_same, pooled, quantized
from residual_net import Residual
from torch import Tensor, nn

import bitsplit
from bitsplit.data import JpegArchive, Preprocessing
from bitsplit.errors import IntegerError
from bitsplit.integer import IntegerTensor

BETWEEN = {
    "relu": torch.relu,
    "relu in place": lambda x: F.relu(x, inplace=True),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.75, 1.25),
    "hardtanh to no power": lambda x: F.hardtanh(x, -0.3, 0.3),
    "clamp": lambda x: x.clamp(min=-0.5),
    "nothing": lambda x: x,
    "max pool": lambda x: F.max_pool2d(torch.relu(x), 3, 2, 1),
    "max pool of both signs": lambda x: F.max_pool2d(x, 2),
    "max pool, rounded up": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "max pool, not beyond the image": lambda x: F.max_pool2d(x[:, :, :7], 2, (3, 5), 1, ceil_mode=True),
    "average pool": lambda x: F.avg_pool2d(torch.relu(x), 2),
    "average pool of nine": lambda x: F.avg_pool2d(torch.relu(x), 3, 2),
    "padded average pool": lambda x: F.avg_pool2d(torch.relu(x), 3, 1, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(torch.relu(x), 4),
    "sum of both signs": lambda x: torch.relu(x) + x,
    "in place": lambda x: torch.relu(x).add_(x),
    "a copy in place": lambda x: x.clone().relu_() + x,
    "difference": lambda x: torch.relu(x) - x,
    "halves": lambda x: torch.cat(torch.relu(x).chunk(2, 1)[::-1], 1),
    "shuffle": lambda x: torch.relu(x).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2),
    "every second": lambda x: F.pad(torch.relu(x)[:, :, ::2, ::2], (1, 0, 0, 1)),
    "upward": lambda x: F.avg_pool2d(F.interpolate(torch.relu(x), scale_factor=2), 2),
    "upward, exactly": lambda x: F.interpolate(x, size=(11, 5), mode="nearest-exact"),
    "finer": lambda x: F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1),
    "both signs": lambda x: torch.stack([torch.relu(x), torch.relu(-x)], 1).flatten(1, 2)[:, ::2],
    "far ends": lambda x: x.clamp(-1e30, torch.finfo(torch.float32).max),
    "whole windows": lambda x: F.avg_pool2d(torch.relu(x), 2, ceil_mode=True, count_include_pad=False),
    "dropout": lambda x: F.dropout(torch.relu(x), training=False),
}


class Padding(nn.Conv2d):
    """Pads in its own forward, more on one side."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


LAYERS = {
    "strided": nn.Conv2d(3, 8, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(3, 8, 3, dilation=2, padding=(1, 0)),
    "same": nn.Conv2d(3, 8, 4, padding="same"),
    "own padding": Padding(3, 8, 2, stride=2),
    "grouped": nn.Conv2d(3, 6, 3, groups=3, bias=False),
    "upward": nn.ConvTranspose2d(3, 8, 3, stride=2, padding=1, output_padding=1),
    "upward in groups": nn.ConvTranspose2d(3, 6, 3, groups=3),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_stands_between_layers(images, name):
    assert_same(pooled(BETWEEN[name]), images)


@pytest.mark.parametrize("name", LAYERS)
def test_kinds_of_layers(images, name):
    assert_same(nn.Sequential(LAYERS[name], nn.ReLU(), nn.Flatten()), images)


def test_lines_and_rows_of_features():
    assert_same(nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 4, 1)), torch.randn(32, 3, 9))
    assert_same(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), torch.randn(32, 5, 6))


@pytest.mark.parametrize("pool", [nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(4)])
def test_pools_of_lines(pool):
    model = nn.Sequential(nn.Conv1d(3, 6, 3, padding=1), nn.ReLU(), pool, nn.Conv1d(6, 4, 1))
    assert_same(model, torch.randn(32, 3, 8))


def test_a_size_that_the_caller_asks_for(images):
    model = Net(lambda m, x: m.up(torch.relu(m.one(x)), output_size=[8, 7]),
                one=layer(3, 8, stride=2), up=nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1))  # fmt: skip
    assert_same(model, images)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "bitsplit"},
        {"method": bitsplit.BitSplit(levels="affine")},
        {"method": bitsplit.BitSplit(ecaq=True), "policy": "paper"},
        {"method": bitsplit.BitSplit(ecaq=True), "policy": "qdrop"},
        {"method": [bitsplit.QDrop(iterations=30)], "weights": 2},
        {"weights": 8, "activations": 8},
        {"policy": "brecq"},
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_shortcuts(images, options):
    assert_same(Residual(), images, **options)


def test_sums_of_unlike_channels(images):
    """Of one tensor the channels have scales far apart."""
    model = pooled(torch.relu)
    with torch.no_grad():
        model.one.weight *= torch.logspace(-3, 1, 8).view(-1, 1, 1, 1)
    network = assert_same(model, images)
    exponents = network._layers["one"]._exponents
    assert exponents.max() - exponents.min() > 8


def test_a_dead_channel(images):
    model = pooled(torch.relu)
    with torch.no_grad():
        model.one.weight[2] = 0
    assert_same(model, images)


def test_a_channel_that_is_all_bias(images):
    """Its weights would have a scale in which the bias is no int32."""
    model = pooled(torch.relu)
    with torch.no_grad():
        model.one.weight[2] *= 1e-12
        model.one.bias[2] = 3.0
    network = assert_same(model, images)
    assert float(network._model.one.bias[2]) == pytest.approx(3.0, rel=1e-6)
    assert (network._layers["one"]._bias.abs() <= 2**22).all()


def test_sums_that_float32_might_round(images):
    """Two branches whose sums have steps far apart; then a mean of many."""
    model = Net(lambda m, x: (m.one(x) + m.two(x)).relu().mean((2, 3)), one=layer(3, 8), two=layer(3, 8))
    with torch.no_grad():
        model.two.weight *= 1e-3
        model.two.bias *= 1e-3
    network = bitsplit.IntegerNetwork(quantized(model, images, weights=8, activations=8))
    assert network.beyond_float32 == ()
    network(images)
    assert network.beyond_float32 == ("add behind two", "mean behind two")


def test_a_mean_of_means_is_not_promised(images):
    model = pooled(lambda x: F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1), 3, 1, 1))
    network = bitsplit.IntegerNetwork(quantized(model, images))
    network(images)
    assert network.beyond_float32 == ("avg_pool2d behind one",)


def test_the_output_is_integers(images):
    network = bitsplit.IntegerNetwork(quantized(Residual(), images))
    scores = network.integers(images)
    assert isinstance(scores, IntegerTensor)
    assert scores.values.dtype == torch.int32
    aligned = scores.aligned()
    assert len(aligned.exponents.unique()) == 1
    assert torch.equal(aligned.numbers(), scores.numbers())
    assert torch.equal(aligned.values.argmax(1), network(images).argmax(1))
    assert "IntegerTensor" in repr(scores)


def test_the_comparison_sees_a_single_step(images):
    """Of the sums of one layer, before they are rounded."""
    simulated = quantized(Residual(), images)
    network = bitsplit.IntegerNetwork(simulated)
    quantizer = network._model.get_submodule("second.one").input_quantizer
    exact = quantizer.forward

    quantizer.forward = lambda x: exact(IntegerTensor(x.values - 1, x.exponents, x.divisor))
    assert not torch.equal(network(images), simulated(images))


def test_the_model_stays_as_it_is(images):
    simulated = quantized(Residual(), images)
    before = simulated(images)
    bitsplit.IntegerNetwork(simulated)(images)
    assert torch.equal(simulated(images), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_are_networks_of_their_own(images, copied):
    network = bitsplit.IntegerNetwork(quantized(Residual(), images))
    again = copied(network)
    with pytest.raises(IntegerError, match="stem.input_quantizer: the network's input"):
        again(images * float("nan"))
    assert torch.equal(again(images), network(images))


def test_a_real_network(trained_resnet20, shared_data):
    """CIFAR-10 ResNet-20: all scores of some hundred test images."""
    preprocessing = Preprocessing(resize=None, crop=None)
    archive = JpegArchive(shared_data / "cifar10" / "test.npz", preprocessing)
    photos = torch.stack([archive[index][0] for index in range(384)])
    simulated = quantized(trained_resnet20, photos[:128], bitsplit.BitSplit(levels="affine"))
    network = bitsplit.IntegerNetwork(simulated)
    with torch.no_grad():
        assert torch.equal(network(photos[128:]), simulated(photos[128:]))
    assert network.beyond_float32 == ()
