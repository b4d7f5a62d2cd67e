"""Steps around the weight methods: equalisation, bias correction, re-estimated norms."""

from __future__ import annotations

import copy
from itertools import cycle, islice

import pytest
import torch
from torch import Tensor, nn

import bitsplit
from bitsplit.network import fold_norms, observe
from bitsplit.network.pairs import LayerPair, homogeneous_pairs
from bitsplit.ops.ranges import alternate_scale


class Chain(nn.Module):
    """conv, norm, ReLU, depthwise conv, ReLU6, conv, ReLU, pooling, linear; and a branch that ends a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.pointwise = nn.Conv2d(6, 8, 1)
        self.branched = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.relu6(self.depthwise(x))
        x = torch.relu(self.pointwise(x))
        x = self.branched(x) + x
        return self.fc(torch.relu(x).mean((2, 3)))


@pytest.fixture
def model() -> nn.Module:
    chain = Chain()
    chain.norm.running_mean.uniform_(-1, 1)
    chain.norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(chain.norm.weight, 0.1, 2)
    nn.init.uniform_(chain.norm.bias, -1, 1)
    return chain.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 8, 8)


def test_pairs_end_at_branches_and_at_functions_that_are_not_homogeneous(
    model: nn.Module, images: Tensor
) -> None:
    network = observe(model, images)
    fold_norms(network)
    # ReLU6 stands behind "depthwise"; "pointwise" is read twice; "branched" goes into a sum
    assert homogeneous_pairs(network) == [LayerPair("first", "norm", "depthwise")]


def test_equalising_keeps_the_function_and_evens_the_ranges(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        model.first.weight.mul_(torch.logspace(-2, 2, 6).view(-1, 1, 1, 1))
        model.norm.running_mean.mul_(torch.logspace(-2, 2, 6))
        model.norm.running_var.mul_(torch.logspace(-2, 2, 6).square())
        model.norm.weight.mul_(torch.logspace(-1, 1, 6))
    target = model(images)
    method = ["equalize", "minmax"]
    kept_float = {"*": {"weights": None}, "fc": {"weights": 8}}
    equalised = bitsplit.quantize(model, images, method, weights=8, layers=kept_float)
    torch.testing.assert_close(equalised(images), target, rtol=0.05, atol=0.05)
    rows = equalised.first.weight.abs().amax((1, 2, 3))
    columns = equalised.depthwise.weight.abs().amax((1, 2, 3))
    torch.testing.assert_close(rows, columns, rtol=0.02, atol=0)


def test_equalising_helps_where_channels_differ(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        model.first.weight[0].mul_(100)
    target = model(images)

    def error(method: object) -> float:
        quantized = bitsplit.quantize(model, images, method, weights=8, activations=4)
        return float((quantized(images) - target).square().mean())

    assert error(["equalize", "minmax"]) <= error("minmax") * 1.05


def test_bias_correction_removes_the_mean_error(model: nn.Module, images: Tensor) -> None:
    def mean_error(method: object) -> float:
        quantized = bitsplit.quantize(model, images, method, weights=3)
        found: dict[str, Tensor] = {}
        for name, net in (("float", model), ("quantized", quantized)):
            hook = net.pointwise.register_forward_hook(
                lambda module, args, output, name=name: found.update({name: output.mean((0, 2, 3))})
            )
            net(images)
            hook.remove()
        return float((found["quantized"] - found["float"]).abs().max())

    assert mean_error("minmax") > 1e-2
    assert mean_error(["minmax", "bias_correction"]) < 1e-5


def test_reestimated_norms_equal_norms_in_training_mode(model: nn.Module, images: Tensor) -> None:
    batches = images.split(10)
    reference = copy.deepcopy(model)
    reference.norm.train()
    with torch.no_grad():
        for batch in islice(cycle(batches), 25):
            reference(batch)
    reference.eval()
    layers = {"*": {"weights": None}, "fc": {"weights": 8}}
    chain = ["minmax", bitsplit.ReestimateNorms(batches=25)]
    quantized = bitsplit.quantize(model, list(batches), chain, weights=8, layers=layers)
    hidden = {}
    for name, net in (("reference", reference), ("quantized", quantized)):
        net.depthwise.register_forward_pre_hook(lambda m, args, name=name: hidden.update({name: args[0]}))
        net(images)
    torch.testing.assert_close(hidden["quantized"], hidden["reference"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(hidden["quantized"], torch.relu(model.norm(model.first(images))), atol=1e-2)


def test_reestimated_norms_stay_integer(model: nn.Module, images: Tensor) -> None:
    quantized = bitsplit.quantize(model, images, bitsplit.BitSplit(paper=True), weights=3, policy="all")
    found = bitsplit.codes(quantized)["first"]
    assert torch.equal(quantized.first.weight, found.codes.float() * found.scale.view(-1, 1, 1, 1))


def test_activations_last_are_fitted_on_float_activations(model: nn.Module, images: Tensor) -> None:
    options = {"starts": "planes", "polish": False, "error_compensation": False, "refit_bias": False}
    weights_only = bitsplit.quantize(model, images, bitsplit.BitSplit(**options), weights=3)
    method = bitsplit.BitSplit(activations="bitsplit", activations_last=True, **options)
    quantized = bitsplit.quantize(model, images, method, weights=3, activations=4)
    inputs: dict[str, Tensor] = {}
    for name, layer in weights_only.named_modules():
        layer.register_forward_pre_hook(lambda m, args, name=name: inputs.update({name: args[0].clone()}))
    weights_only(images)
    fitted = {
        name: layer.input_quantizer
        for name, layer in quantized.named_modules()
        if hasattr(layer, "input_quantizer")
    }
    assert len(fitted) > 1
    for name, quantizer in fitted.items():
        expected = alternate_scale(inputs[name], quantizer.grid.low, quantizer.grid.high)
        torch.testing.assert_close(quantizer.scale, expected, rtol=1e-5, atol=0)
    assert all(
        torch.equal(c.codes, bitsplit.codes(weights_only)[n].codes)
        for n, c in bitsplit.codes(quantized).items()
    )


def test_inputs_of_either_sign_get_a_zero_point_by_default_and_none_in_the_paper(images: Tensor) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3)
    ).eval()
    errors = {}
    for paper in (False, True):
        quantized = bitsplit.quantize(
            net,
            images,
            bitsplit.BitSplit(paper=paper),
            weights=8,
            activations=4,
            layers={"4": {"activations": 4}},
        )
        quantizer = quantized.get_submodule("2").input_quantizer
        assert quantizer.grid.is_signed == paper and bool(quantizer.zero_point > 0) != paper
        errors[paper] = float((quantized(images) - net(images)).square().mean())
    assert errors[False] < 0.5 * errors[True]


class TestNormsOfSingleValues:
    """A head whose norm sees one value of a channel for every image."""

    def head(self) -> nn.Module:
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 5),
        )  # fmt: skip
        for _ in range(60):
            net.train()(torch.randn(32, 3, 8, 8))
        return net.eval()

    def test_a_last_batch_of_one_image_says_nothing(self) -> None:
        net, images = self.head(), torch.randn(33, 3, 8, 8)
        whole, cut = (
            bitsplit.quantize(net, list(images.split(size)), ["nearest", "norms"], weights=8)
            for size in (33, 32)
        )
        exact = net(images)
        worst = 2 * (whole(images) - exact).square().mean() + 0.01 * exact.square().mean()
        assert (cut(images) - exact).square().mean() < worst

    def test_batches_of_one_image_are_refused(self) -> None:
        with pytest.raises(
            bitsplit.BitsplitError, match="norm behind 4 needs batches with two values or more"
        ):
            bitsplit.quantize(
                self.head(), torch.randn(8, 3, 8, 8), ["nearest", "norms"], weights=8, batch_size=1
            )
