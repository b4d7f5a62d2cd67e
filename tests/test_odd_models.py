"""Models that are legal but unusual give right results."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from function_net import Net, layer, three_layers
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import bitsplit


@pytest.fixture
def model() -> nn.Module:
    return three_layers()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 8, 8)


def relative_error(quantized: nn.Module, model: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        target = model(inputs)
        return float((quantized(inputs) - target).square().mean() / target.square().mean())


ECAQ = bitsplit.BitSplit(ecaq=True)
EIGHT = {"weights": 8, "activations": 8, "policy": "all"}


def test_float_weights_read_no_codes_under_per_channel_activations(model: nn.Module, images: Tensor) -> None:
    quantized = bitsplit.quantize(model, images, ECAQ, weights=None, activations=8, policy="all")
    assert relative_error(quantized, model, images) < 1e-3


def test_a_float_layer_beside_one_with_per_channel_activations() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(m.stem(x))
        return m.left(y) + m.right(y) + m.linear(y)

    layers = {name: nn.Conv1d(6, 6, 1) for name in ("stem", "left", "right")}
    net, inputs = Net(forward, **layers, linear=nn.Linear(6, 6)).eval(), torch.randn(16, 6, 6)
    quantized = bitsplit.quantize(net, inputs, ECAQ, **EIGHT, layers={"right": {"weights": None}})
    assert relative_error(quantized, net, inputs) < 1e-3
    assert quantized.left.input_quantizer is not quantized.right.input_quantizer
    plan = bitsplit.report_of(quantized).plan
    assert [plan.quantizer_owner(plan.layer(name)) for name in ("left", "right", "linear")] == [
        "left",
        "right",
        "linear",
    ]


def test_images_one_by_one_with_per_channel_activations(images: Tensor) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return torch.stack([m.second(torch.relu(m.first(image))) for image in x])

    net = Net(forward, first=layer(3, 4), second=layer(4, 5)).eval()
    quantized = bitsplit.quantize(net, images, ECAQ, **EIGHT)
    assert quantized.second.input_quantizer.scale.numel() == 4
    assert relative_error(quantized, net, images) < 1e-3


def test_the_model_survives_when_the_copy_loses_its_parametrization(images: Tensor) -> None:
    net = nn.Sequential(weight_norm(layer(3, 4)), nn.ReLU(), weight_norm(layer(4, 4))).eval()
    with torch.no_grad():
        before = net(images)
    quantized = bitsplit.quantize(net, images, **EIGHT)
    with torch.no_grad():
        assert torch.equal(net(images), before)
    assert len(bitsplit.codes(quantized)) == 2
    assert relative_error(quantized, net, images) < 1e-3


def test_a_forward_that_was_given_to_one_module_object(images: Tensor) -> None:
    block = Net(lambda m, x: torch.relu(m.a(torch.relu(m.b(x))) + x), a=layer(3, 3), b=layer(3, 3))
    block.forward = types.MethodType(lambda self, x: self.function(self, x) * 3 + 1, block)
    net = nn.Sequential(block, layer(3, 3)).eval()
    quantized = bitsplit.quantize(net, images, **EIGHT)
    assert relative_error(quantized, net, images) < 1e-3


def test_a_layer_that_some_batches_do_not_reach(images: Tensor) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(m.first(x))
        return m.last(torch.relu(m.sometimes(y)) if len(x) == 5 else y)

    net = Net(forward, first=layer(3, 4), sometimes=layer(4, 4), last=layer(4, 2)).eval()
    quantized = bitsplit.quantize(net, images, **EIGHT, batch_size=5)
    assert relative_error(quantized, net, images) < 1e-3
    assert relative_error(quantized, net, images[:5]) < 1e-3


def test_same_codes_with_any_memory_in_channels_last(model: nn.Module, images: Tensor) -> None:
    model = model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    results = [
        bitsplit.codes(bitsplit.quantize(model, images, weights=3, activations=4, memory=memory))
        for memory in (None, 0)
    ]
    for name, found in results[0].items():
        assert torch.equal(found.codes, results[1][name].codes)
        assert torch.equal(found.scale, results[1][name].scale)


def channels_then_features(m: nn.Module, x: Tensor) -> Tensor:
    return m.second(torch.relu(m.first(x)))


def mean_over_channels(m: nn.Module, x: Tensor) -> Tensor:
    return m.second(torch.relu(m.first(x)).mean(1))


def tied(m: nn.Module, x: Tensor) -> Tensor:
    return m.twin(torch.relu(m.second(torch.relu(m.first(x)))))


def twins() -> dict[str, nn.Module]:
    layers = {"first": layer(3, 3), "second": layer(3, 3), "twin": layer(3, 3)}
    layers["twin"].weight = layers["second"].weight
    return layers


@pytest.mark.parametrize(
    ("forward", "modules", "shape"),
    [
        (channels_then_features, {"first": nn.Conv1d(3, 8, 3, padding=1), "second": nn.Linear(8, 8)}, (3, 8)),
        (mean_over_channels, {"first": layer(3, 8), "second": nn.Linear(8, 5)}, (3, 8, 8)),
        (tied, twins(), (3, 8, 8)),
    ],
)
def test_equalising_leaves_alone_what_is_no_pair(
    forward: Callable[[nn.Module, Tensor], Tensor], modules: dict[str, nn.Module], shape: tuple[int, ...]
) -> None:
    net, inputs = Net(forward, **modules).eval(), torch.randn(8, *shape)
    with torch.no_grad():
        net.first.weight[0] *= 30
    quantized = bitsplit.quantize(net, inputs, ["equalize", "minmax"], weights=8, policy="all")
    assert relative_error(quantized, net, inputs) < 1e-3


@pytest.mark.parametrize("method", ["bitsplit", ECAQ])
def test_channels_that_are_never_active(method: object) -> None:
    """They must not decide about the scale of the others: their weights count for nothing."""
    net = nn.Sequential(layer(3, 8), nn.ReLU(), layer(8, 8), nn.ReLU(), layer(8, 4)).eval()
    with torch.no_grad():
        net[0].bias[:3] = -100
        net[2].weight[:, :3] *= 20
    inputs = torch.randn(32, 3, 8, 8)
    quantized = bitsplit.quantize(net, inputs, method, weights=4, activations=8, policy="all")
    assert max(layer.error for layer in bitsplit.report_of(quantized).layers) < 0.02


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_that_share_a_weight_get_codes_of_their_own(inplace: bool, tmp_path: Path) -> None:
    net, inputs = Net(tied, **twins()).eval(), torch.randn(32, 3, 8, 8)
    expected, fresh = net(inputs), copy.deepcopy(net)
    quantized = bitsplit.quantize(net, inputs, weights=3, activations=8, policy="all", inplace=inplace)
    found = bitsplit.codes(quantized)
    assert set(found) == {"first", "second", "twin"}
    assert not torch.equal(found["second"].codes, found["twin"].codes)
    assert inplace or net.second.weight is net.twin.weight
    assert (quantized(inputs) - expected).norm() < 0.2 * expected.norm()
    bitsplit.save(quantized, tmp_path / "twins.safetensors")
    loaded = bitsplit.load(tmp_path / "twins.safetensors", fresh)
    assert torch.equal(loaded(inputs), quantized(inputs))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_every_padding_mode(mode: str, kind: type[nn.Module]) -> None:
    second = kind(6, 6, 3, padding=1, padding_mode=mode)
    net = nn.Sequential(kind(3, 6, 3, padding=1), nn.ReLU(), second).eval()
    inputs = torch.randn(16, 3, *(8 for _ in second.kernel_size))
    quantized = bitsplit.quantize(net, inputs, **EIGHT)
    assert set(bitsplit.codes(quantized)) == {"0", "2"}
    assert relative_error(quantized, net, inputs) < 1e-3


@pytest.mark.parametrize("method", ["minmax", "bitsplit", ECAQ])
def test_a_layer_that_two_blocks_share(images: Tensor, method: object) -> None:
    def block(m: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(m.shared(torch.relu(m.own(x))) + x)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.second(m.first(m.stem(x)))
        return m.last(torch.relu(m.shared(x)))  # and the model itself

    shared = layer(4, 4)
    blocks = {name: Net(block, own=layer(4, 4), shared=shared) for name in ("first", "second")}
    net = Net(forward, stem=layer(3, 4), **blocks, shared=shared, last=layer(4, 2)).eval()
    quantized = bitsplit.quantize(net, images, method, **EIGHT)
    assert len(bitsplit.codes(quantized)) == 5
    assert max(layer.error for layer in bitsplit.report_of(quantized).layers) < 1e-2
    assert relative_error(quantized, net, images) < 1e-3
    again = bitsplit.quantize(net, images, method, **EIGHT, memory=0)
    assert torch.equal(again(images), quantized(images))


def test_a_tensor_that_was_kept_with_its_history(model: nn.Module, images: Tensor) -> None:
    model.memory = model(images)
    quantized = bitsplit.quantize(model, images, **EIGHT)
    assert relative_error(quantized, model, images) < 1e-3
    assert model.memory.requires_grad


def test_layers_called_by_keyword(images: Tensor) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(input=torch.relu(m.first(input=x)).mean((2, 3)))

    model = Net(forward, first=layer(3, 6), fc=nn.Linear(6, 4)).eval()
    quantized = bitsplit.quantize(model, images, **EIGHT)
    assert quantized.fc.input_quantizer.is_fitted
    assert relative_error(quantized, model, images) < 1e-3


def test_keywords_in_another_order_are_the_same_arguments(images: Tensor) -> None:
    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = layer(6, 6), layer(6, 6)

        def forward(self, main: Tensor, side: Tensor) -> Tensor:
            return torch.relu(main + self.two(torch.relu(self.one(main)))) * torch.sigmoid(side)

    def forward(m: nn.Module, x: Tensor, swapped: bool = False) -> Tensor:
        x = torch.relu(m.first(x))
        x = m.b(main=x, side=-x)
        x = m.b(side=-x, main=x) if swapped else m.b(main=x, side=-x)
        return m.fc(x.mean((2, 3)))

    options = {**EIGHT, "policy": "brecq"}
    parts = {"first": layer(3, 6), "b": Weighed(), "fc": nn.Linear(6, 4)}
    plain = Net(forward, **parts).eval()
    swapped = Net(lambda m, x: forward(m, x, swapped=True), **parts).eval()
    quantized = [bitsplit.quantize(model, images, **options) for model in (plain, swapped)]
    assert quantized[0].b.argument_quantizers
    assert torch.equal(quantized[0](images), quantized[1](images))


def test_autocast_around_the_call_does_not_count(model: nn.Module, images: Tensor) -> None:
    plain = bitsplit.quantize(model, images, **EIGHT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized = bitsplit.quantize(model, images, **EIGHT)
    assert torch.equal(quantized(images), plain(images))


def test_huge_values_have_finite_errors(model: nn.Module, images: Tensor) -> None:
    quantized = bitsplit.quantize(model, images * 1e20, "minmax", weights=4)
    assert all(0 < layer.error < 1 for layer in bitsplit.report_of(quantized).layers)


def test_images_and_labels_as_a_pair_of_tensors(model: nn.Module, images: Tensor) -> None:
    quantized = bitsplit.quantize(model, (images, torch.arange(len(images))), "minmax")
    assert bitsplit.report_of(quantized).data["images"] == len(images)
    assert torch.equal(quantized(images), bitsplit.quantize(model, images, "minmax")(images))


def test_plan_takes_all_arguments_of_quantize(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    arguments = {"weights": 5, "inplace": True, "checkpoint": tmp_path / "run", "memory": 0, "batch_size": 4}
    plan = bitsplit.plan(model, images, "minmax", **arguments)
    assert not (tmp_path / "run").exists() and not hasattr(model[0], "weight_quantizer")
    assert bitsplit.quantize(model, images, "minmax", **arguments)._bitsplit.plan == plan


def test_names_with_slashes_and_brackets(images: Tensor, tmp_path: Path) -> None:
    net = nn.Sequential()
    net.add_module("a/[red]b", layer(3, 6))
    net.add_module("last", layer(6, 4))
    arguments = {"weights": 4, "checkpoint": tmp_path, "layers": {"a/*": {"weights": 6}}}
    first = bitsplit.quantize(net.eval(), images, **arguments)
    again = bitsplit.quantize(net, images, **arguments)
    assert torch.equal(first(images), again(images))
    assert "a/[red]b" in str(bitsplit.plan(net, images)) and "a/[red]b" in str(bitsplit.summary(first))


QUICK_FISHER = bitsplit.Brecq(iterations=3, step_iterations=3, loss="fisher")


@pytest.mark.parametrize("method", ["bitsplit", QUICK_FISHER, ["mse", bitsplit.Global(epochs=1)]])
def test_buffers_that_the_forward_changes_stay_as_they_were(images: Tensor, method: Any) -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = layer(6, 6), layer(6, 6)
            self.register_buffer("average", torch.ones(()))
            self.register_buffer("last", None)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.average.mul_(0.9).add_(x.detach().abs().mean())
            self.last, self.count = x.detach(), self.count + 1
            return x + self.two(torch.relu(self.one(x / self.average)))

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(m.block(torch.relu(m.norm(m.first(x)))).mean((2, 3)))

    model = Net(forward, first=layer(3, 6), norm=nn.BatchNorm2d(6), block=Averaged(), fc=nn.Linear(6, 4))
    quantized = bitsplit.quantize(model.eval(), images, method, weights=4, activations=4)
    found = dict(quantized.named_buffers())
    assert all(torch.equal(found[name], buffer) for name, buffer in model.named_buffers())
    assert quantized.block.last is None and quantized.block.two.input_quantizer.is_fitted
