"""The last step of a chain: scales, biases and steps of the whole network are learned together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from function_net import Net, layer
from residual_net import same
from torch import Tensor, nn

import bitsplit
from bitsplit.methods.whole import divergence, relative


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(
        layer(3, 8), nn.ReLU(), layer(8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(48, 3, 8, 8)


def distance(quantized: nn.Module, model: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float(divergence(quantized(images), model(images)))


def loss(quantized: nn.Module, model: nn.Module, images: Tensor) -> float:
    """What is made smaller, mean over the batches: the divergence and the errors of the units' outputs."""
    with torch.no_grad():
        errors = [
            divergence(quantized(batch), model(batch))
            + sum(relative(quantized[:last](batch), model[:last](batch)) for last in (1, 3, 7)) / 3
            for batch in images.split(16)
        ]
    return float(torch.stack(errors).mean())


@pytest.mark.parametrize("activations", [None, 4])
@pytest.mark.parametrize("start", ["mse", "bitsplit"])
def test_the_output_comes_closer_and_the_integers_stay(model, images, start, activations):
    options = {"weights": 2, "activations": activations, "batch_size": 16}
    before = bitsplit.quantize(model, images, start, **options)
    after = bitsplit.quantize(model, images, [start, bitsplit.Global(epochs=20)], **options)
    assert loss(after, model, images) <= loss(before, model, images)
    if start == "mse":  # else there is little left to gain, and most of that in the units
        assert distance(after, model, images) < distance(before, model, images) / 2
    found, expected = bitsplit.codes(after), bitsplit.codes(before)
    assert all(torch.equal(found[name].codes, expected[name].codes) for name in expected)
    assert all((found[name].scale > 0).all() for name in found)


def test_rates_that_are_too_high_are_lowered_once(model, images):
    """Biases that move by units: even a quarter of that is too much, and nothing of it stays."""
    start, options = bitsplit.Mse(), {"weights": 4, "batch_size": 16}
    before = bitsplit.quantize(model, images, start, **options)
    harmful = bitsplit.Global(epochs=2, scale_rate=0.0, bias_rate=10.0)
    with pytest.warns(UserWarning) as caught:
        kept = bitsplit.quantize(model, images, [start, harmful], **options)
    said = [str(warning.message) for warning in caught if "no gain" in str(warning.message)]
    assert len(said) == 2 and "tried again at lower rates" in said[0] and "kept what it" in said[1]
    assert same(kept, before)


def test_lower_rates_keep_their_gain(model, images):
    start, options = bitsplit.Mse(), {"weights": 2, "batch_size": 16}
    before = bitsplit.quantize(model, images, start, **options)
    for rate in (0.05, 0.1, 0.2, 0.4, 0.8):
        method = bitsplit.Global(epochs=20, scale_rate=rate, bias_rate=rate)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            after = bitsplit.quantize(model, images, [start, method], **options)
        said = [str(warning.message) for warning in caught if "no gain" in str(warning.message)]
        if len(said) == 1:
            assert "tried again" in said[0]
            assert distance(after, model, images) < distance(before, model, images)
            return
    pytest.fail("no rate was too high by less than four times")


def test_integers_move_to_a_neighbour_at_most(model, images):
    """Scales stay here, so that levels can be compared; the neighbour lies towards the float weight."""
    options = {"weights": 2, "batch_size": 16}
    before = bitsplit.codes(bitsplit.quantize(model, images, "mse", **options))
    method = bitsplit.Global(epochs=60, rate=0.05, scale_rate=0)
    learned = bitsplit.quantize(model, images, ["mse", method], **options)
    changed = 0
    for name, found in bitsplit.codes(learned).items():
        start = before[name]
        moved = found.codes.int() - start.codes.int()
        changed += int((moved != 0).sum())
        assert moved.abs().max() <= 1
        assert torch.equal(found.scale, start.scale)
        weight = model.get_submodule(name).weight
        level = start.codes * start.scale.view(-1, *[1] * (weight.dim() - 1))
        assert (moved * (weight - level) >= 0).all()
    assert changed > 0


def test_no_epochs_change_nothing(model, images):
    before = bitsplit.quantize(model, images, "mse", weights=2)
    after = bitsplit.quantize(model, images, ["mse", bitsplit.Global(epochs=0)], weights=2)
    assert torch.equal(after(images), before(images))


def test_threads_change_nothing(model, images):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        chain = ["mse", bitsplit.Global(epochs=3)]
        results.append(bitsplit.quantize(model, images, chain, weights=2, activations=4)(images))
    assert torch.equal(*results)


def test_saved_and_loaded(model, images, tmp_path):
    chain = ["bitsplit", bitsplit.Global(epochs=2)]
    quantized = bitsplit.quantize(model, images, chain, weights=2, activations=4)
    bitsplit.save(quantized, tmp_path / "net.safetensors")
    loaded = bitsplit.load(tmp_path / "net.safetensors", model)
    assert torch.equal(loaded(images), quantized(images))


def test_networks_without_class_scores(images):
    net = Net(lambda m, x: {"map": m.b(torch.relu(m.a(x)))}, a=layer(3, 6), b=layer(6, 2)).eval()
    before = bitsplit.quantize(net, images, "mse", weights=2)
    after = bitsplit.quantize(net, images, ["mse", bitsplit.Global(epochs=10)], weights=2)
    assert distance(after, net, images) < distance(before, net, images)


@dataclass
class Answer:
    """An output that no tree of tensors holds."""

    scores: Tensor


def errors_of_layers(quantized: nn.Module, net: nn.Module, images: Tensor) -> list[float]:
    outputs = [(m.a(images), m.b(torch.relu(m.a(images)))) for m in (quantized, net)]
    return [float(relative(got, wanted)) for got, wanted in zip(*outputs, strict=True)]


@pytest.mark.parametrize("given", [Answer, lambda y: y > 0, lambda y: y.argmax(1)])
def test_of_an_output_without_gradient_the_units_are_learned(images, given):
    net = Net(lambda m, x: given(m.b(torch.relu(m.a(x)))), a=layer(3, 6), b=layer(6, 2)).eval()
    before = bitsplit.quantize(net, images, "mse", weights=2)
    with pytest.warns(UserWarning, match="the network's output has no gradient"):
        after = bitsplit.quantize(net, images, ["mse", bitsplit.Global(epochs=10)], weights=2)
    with torch.no_grad():
        first, last = (sum(errors_of_layers(quantized, net, images)) for quantized in (before, after))
    assert last < first


def test_without_any_gradient_the_network_stays(images):
    net = Net(torch.no_grad()(lambda m, x: m.b(torch.relu(m.a(x)))), a=layer(3, 6), b=layer(6, 2)).eval()
    before = bitsplit.quantize(net, images, "mse", weights=2)
    with pytest.warns(UserWarning, match="the network's output has no gradient"):
        after = bitsplit.quantize(net, images, ["mse", bitsplit.Global(epochs=2)], weights=2)
    assert torch.equal(after(images), before(images))


def test_models_that_change_what_they_get(images):
    """In-place operations on the outputs of units, and on the batch itself."""
    net = Net(
        lambda m, x: m.c(m.b(m.a(x.mul_(0.5)).relu_()).add_(1.0).mean((2, 3))),
        a=layer(3, 6), b=layer(6, 4), c=nn.Linear(4, 3),
    ).eval()  # fmt: skip
    before = bitsplit.quantize(net, images.clone(), "mse", weights=2)
    after = bitsplit.quantize(net, images.clone(), ["mse", bitsplit.Global(epochs=10)], weights=2)
    with torch.no_grad():
        wanted = net(images.clone())
        errors = [float(divergence(q(images.clone()), wanted)) for q in (before, after)]
    assert errors[1] < errors[0]
