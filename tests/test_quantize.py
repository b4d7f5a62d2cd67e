"""The whole way, from a model and images to a quantized model."""

from __future__ import annotations

import copy

import pytest
import torch
from small_net import same_codes, small_net
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import BitsplitError, CalibrationError
from bitsplit.quantizers import ActivationQuantizer, Grid

METHODS = ["minmax", "nearest", "mse", "bitsplit"]


@pytest.fixture
def model() -> nn.Module:
    return small_net()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 8, 8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_are_their_codes(model: nn.Module, images: Tensor, method: str, bits: int) -> None:
    quantized = bitsplit.quantize(model, images, method, weights=bits, policy="all")
    codes = bitsplit.codes(quantized)
    assert list(codes) == ["stem.0", "depthwise", "down", "fc"]
    for name, found in codes.items():
        weight = quantized.get_submodule(name).weight
        assert found.codes.shape == weight.shape
        assert found.codes.abs().max() <= 2 ** (bits - 1) - 1
        scale = found.scale.view(-1, *[1] * (weight.dim() - 1))
        assert torch.equal(weight, found.codes.float() * scale)
        assert (found.scale > 0).all()


def test_the_result_is_the_same_class_with_the_same_keys(model: nn.Module, images: Tensor) -> None:
    before = copy.deepcopy(model.state_dict())
    quantized = bitsplit.quantize(model, images, weights=4, activations=8)
    assert type(quantized) is type(model)
    assert type(quantized.down) is nn.Conv2d
    assert set(before) <= set(quantized.state_dict())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert not any(hasattr(module, "weight_quantizer") for module in model.modules())


def test_more_bits_bring_the_output_closer(model: nn.Module, images: Tensor) -> None:
    target = model(images)
    errors = []
    for bits in (2, 3, 4, 6, 8):
        quantized = bitsplit.quantize(model, images, weights=bits, activations=8, policy="all")
        errors.append(float((quantized(images) - target).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * float(target.square().mean())


def test_bitsplit_beats_rounding_to_nearest(model: nn.Module, images: Tensor) -> None:
    target = model(images)

    def error(method: str) -> float:
        quantized = bitsplit.quantize(model, images, method, weights=3, policy="all")
        return float((quantized(images) - target).square().mean())

    assert error("bitsplit") < 0.5 * min(error("minmax"), error("mse"), error("nearest"))


@pytest.mark.parametrize("activations", ["minmax", "percentile", "kl", "aciq", "mse", "bitsplit"])
def test_every_activation_method_fits_every_input(model: nn.Module, images: Tensor, activations: str) -> None:
    quantized = bitsplit.quantize(
        model, images, bitsplit.MinMax(activations=activations), weights=8, activations=8
    )
    for layer in (quantized.depthwise, quantized.down, quantized.fc):
        assert layer.input_quantizer.is_fitted
        assert layer.input_quantizer.grid.low == 0  # behind a ReLU
    target = model(images)
    assert (quantized(images) - target).square().mean() < 0.02 * target.square().mean()


def test_per_channel_activation_scales_leave_the_accumulation_integer(
    model: nn.Module, images: Tensor
) -> None:
    method = bitsplit.BitSplit(ecaq=True)
    quantized = bitsplit.quantize(model, images, method, weights=4, activations=4)
    seen: list[Tensor] = []
    quantized.down.register_forward_hook(lambda module, args, output: seen.extend((args[0], output)))
    quantized(images)
    codes, response = seen
    assert quantized.down.input_quantizer.scale.numel() == 8
    assert torch.equal(codes, codes.round()) and codes.min() >= 0 and codes.max() <= 15
    found = bitsplit.codes(quantized)["down"]
    whole = nn.functional.conv2d(codes.long(), found.codes.long(), stride=2, padding=1)  # integers only
    expected = whole * found.scale.view(-1, 1, 1) + quantized.down.bias.view(-1, 1, 1)
    torch.testing.assert_close(response, expected.float(), rtol=1e-5, atol=1e-5)
    target = model(images)
    assert (quantized(images) - target).square().mean() < 0.1 * target.square().mean()


def test_gradients_pass_through_per_channel_activation_scales() -> None:
    quantizer = ActivationQuantizer(Grid.unsigned(2), channel_axis=-1)
    quantizer.set(torch.tensor([0.5, 3.0]))
    x = torch.tensor([[0.7, 4.0], [-0.5, 20.0], [1.4, 0.1]], requires_grad=True)
    read = quantizer.read(quantizer(x))
    assert read.tolist() == [[1, 1], [0, 3], [3, 0]]
    read.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[2.0, 1 / 3], [0, 0], [2.0, 1 / 3]]))


def test_what_comes_before_per_channel_activation_scales_is_learned(model: nn.Module, images: Tensor) -> None:
    method = bitsplit.BitSplit(ecaq=True)
    start = bitsplit.quantize(model, images, method, weights=2, activations=2)
    end_alone = bitsplit.Global(epochs=3, scale_rate=0, bias_rate=1e-2, units=0)
    tuned = bitsplit.quantize(model, images, [method, end_alone], weights=2, activations=2)
    for name in bitsplit.codes(start):
        assert not torch.equal(tuned.get_submodule(name).bias, start.get_submodule(name).bias), name


def test_per_channel_activation_scales_help_when_channels_differ(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        model.stem[1].weight.mul_(torch.logspace(-2, 1, 8))
        model.stem[1].bias.mul_(torch.logspace(-2, 1, 8))
        model.depthwise.weight.div_(torch.logspace(-2, 1, 8).view(-1, 1, 1, 1))

    def error(method: bitsplit.BitSplit) -> float:
        layers = {"depthwise": {"weights": 8, "activations": 4}, "fc": {"weights": None, "activations": None}}
        quantized = bitsplit.quantize(model, images, method, weights=None, layers=layers)
        return bitsplit.report_of(quantized).layer("depthwise").error

    assert error(bitsplit.BitSplit(ecaq=True)) < 0.5 * error(bitsplit.BitSplit())


def test_in_place_keeps_the_module_objects(model: nn.Module, images: Tensor) -> None:
    copied = bitsplit.quantize(model, images, weights=4, activations=8)
    down, stem = model.down, model.stem
    result = bitsplit.quantize(model, images, weights=4, activations=8, inplace=True)
    assert result is model and model.down is down and model.stem is stem
    assert same_codes(model, copied)
    assert torch.equal(model(images), copied(images))


def test_in_place_reaches_what_a_model_holds_in_plain_attributes(images: Tensor) -> None:
    """A list of modules, and a hook that is a method of the model."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(4, 2, 3)
            self.heads, self.seen = [self.one, self.two], 0
            self.stem.register_forward_hook(self.note)

        def note(self, *_: object) -> None:
            self.seen += 1

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            return sum(head(x) for head in self.heads)

    model = Heads().eval()
    bitsplit.quantize(model, images, weights=4, activations=8, inplace=True)
    model.double()
    assert model.heads[1] is model.two
    assert copy.deepcopy(model).heads[0].training == copy.deepcopy(model).one.training
    assert model(images.double()).dtype is torch.float64
    before = model.seen
    model.two.weight.data.zero_()
    model.two.bias.data.zero_()
    model.one.bias = None
    out = model(images.double())
    assert model.seen == before + 1
    x = torch.relu(model.stem(images.double()))
    assert torch.equal(out, model.one(x) + model.two(x))


@pytest.mark.parametrize("method", METHODS)
def test_same_codes_run_after_run_and_with_any_memory(model: nn.Module, images: Tensor, method: str) -> None:
    first = bitsplit.quantize(model, images, method, weights=3, activations=4, batch_size=10)
    second = bitsplit.quantize(model, images, method, weights=3, activations=4, batch_size=10, memory=0)
    assert same_codes(first, second)
    assert torch.equal(first(images), second(images))


def test_same_codes_with_one_and_two_threads(model: nn.Module, images: Tensor) -> None:
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(bitsplit.quantize(model, images, weights=3))
    assert same_codes(*results)


def test_a_model_in_training_mode_is_quantized_in_evaluation_mode(model: nn.Module, images: Tensor) -> None:
    expected = bitsplit.quantize(model, images, weights=4)
    model.train()
    statistics = model.stem[1].running_mean.clone()
    quantized = bitsplit.quantize(model, images, weights=4)
    assert model.training and torch.equal(model.stem[1].running_mean, statistics)
    assert not quantized.training
    assert same_codes(quantized, expected)


def test_batches_of_different_shapes(model: nn.Module) -> None:
    batches = [torch.randn(2, 3, 8, 8), torch.randn(3, 3, 12, 6), torch.randn(1, 3, 9, 9)]
    quantized = bitsplit.quantize(model, batches, weights=4, activations=8)
    target = model(batches[1])
    assert (quantized(batches[1]) - target).square().mean() < 0.1 * target.square().mean()


def test_dead_input_channels_keep_nearest_codes(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        model.stem[1].weight[3] = 0
        model.stem[1].bias[3] = -1  # behind the ReLU this channel is always zero
    quantized = bitsplit.quantize(model, images, weights=4, policy="all")
    target = model(images)
    assert torch.isfinite(quantized(images)).all()
    assert (quantized(images) - target).square().mean() < 0.1 * target.square().mean()


@pytest.mark.parametrize("activations", ["minmax", "percentile", "kl", "aciq", "mse", "bitsplit"])
def test_a_layer_whose_input_is_always_zero(model: nn.Module, images: Tensor, activations: str) -> None:
    with torch.no_grad():
        model.stem[1].weight.zero_()
        model.stem[1].bias.fill_(-1)
    target = model(images)
    method = bitsplit.BitSplit(activations=activations)
    quantized = bitsplit.quantize(model, images, method, weights=4, activations=4)
    assert torch.isfinite(quantized(images)).all()
    assert (quantized(images) - target).square().mean() < 0.1 * target.square().mean()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_data_are_refused(model: nn.Module, images: Tensor, bad: float) -> None:
    images[5, 0, 2, 2] = bad
    with pytest.raises(BitsplitError, match="NaN"):
        bitsplit.quantize(model, images, weights=4)


def test_a_nan_that_arises_inside_is_refused_with_the_layer(model: nn.Module, images: Tensor) -> None:
    def only_in_the_last_batch(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output * float("nan") if len(output) == 4 else output

    model.down.register_forward_hook(only_in_the_last_batch)
    with pytest.raises(CalibrationError, match="down"):
        bitsplit.quantize(model, images, weights=4, batch_size=10)


@pytest.mark.parametrize("empty", [torch.zeros(0, 3, 8, 8), []])
def test_no_data_are_refused(model: nn.Module, empty: object) -> None:
    with pytest.raises(BitsplitError, match="empty"):
        bitsplit.quantize(model, empty, weights=4)


def test_a_failed_run_in_place_leaves_the_model_as_it_was(model: nn.Module, images: Tensor) -> None:
    before = copy.deepcopy(model.state_dict())
    images[5, 0, 2, 2] = float("nan")
    with pytest.raises(BitsplitError):
        bitsplit.quantize(model, images, weights=4, inplace=True)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_the_report_knows_every_layer(model: nn.Module, images: Tensor) -> None:
    report = bitsplit.quantize(model, images, weights=3, activations=8)._bitsplit
    assert [layer.name for layer in report.layers] == ["stem.0", "depthwise", "down", "fc"]
    errors = {layer.name: layer.error for layer in report.layers}
    assert all(0 < error < 0.2 for error in errors.values())
    assert errors["stem.0"] < 1e-3 < errors["down"]  # 8 bits and 3 bits
    assert report.data["images"] == len(images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": 9},
        {"weights": 1},
        {"activations": 16},
        {"policy": "papre"},
        {"layers": {"dwon": {"weights": 8}}},
    ],
)
def test_wrong_arguments_are_explained_in_one_line(model: nn.Module, images: Tensor, wrong: dict) -> None:
    with pytest.raises(bitsplit.errors.RecipeError) as error:
        bitsplit.quantize(model, images, **wrong)
    assert "\n" not in str(error.value)
