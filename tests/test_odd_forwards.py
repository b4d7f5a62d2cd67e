"""Forwards that do what few models do: what is fitted to is what was computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from function_net import Net, layer
from residual_net import same
from torch import Tensor, nn

import bitsplit
from bitsplit.network import observe


def relative_error(quantized: nn.Module, model: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        wanted = model(images)
        return float((quantized(images) - wanted).square().sum() / wanted.square().sum())


def head(inplace: bool) -> nn.Module:
    """One convolution for all levels, as in the heads of detectors."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        levels = [x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4)]
        return torch.cat([m.out(F.relu(m.shared(y), inplace=inplace)).mean((2, 3)) for y in levels], 1)

    torch.manual_seed(1)
    return Net(forward, shared=layer(3, 8), out=layer(8, 4)).eval()


def test_a_change_in_place_behind_a_shared_layer_is_not_its_response(images):
    plain, inplace = (
        bitsplit.quantize(head(inplace), images, "bitsplit", weights=3, activations=4)
        for inplace in (False, True)
    )
    assert same(plain, inplace)


def test_a_change_in_place_of_what_a_layer_reads_is_not_its_input(images):
    def forward(m: nn.Module, x: Tensor, inplace: bool) -> Tensor:
        for _ in range(3):
            y = 0.5 * m.shared(x)
            x = x.add_(y) if inplace else x + y
        return x

    torch.manual_seed(1)
    first, shared = layer(3, 3), layer(3, 3)
    plain, inplace = (
        bitsplit.quantize(
            Net(lambda m, x, way=way: forward(m, m.first(x), way), first=first, shared=shared).eval(),
            images, "bitsplit", weights=3, policy="all",
        )
        for way in (False, True)
    )  # fmt: skip
    assert same(plain, inplace)


@pytest.mark.parametrize("method", ["minmax", "mse", "bitsplit"])
def test_rows_that_a_batch_does_not_have(method):
    """A branch for images that shine, which some batches are without."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        rows = torch.relu(m.stem(x)).mean((2, 3))
        return rows[:, :4] + F.pad(m.branch(rows[x.mean((1, 2, 3)) > 10]), (0, 0, 0, len(x)))[: len(x)]

    images = torch.randn(12, 3, 8, 8)
    images[8:] += 20
    model = Net(forward, stem=layer(3, 8), branch=nn.Linear(8, 4)).eval()
    quantized = bitsplit.quantize(model, images, method, weights=8, activations=8, batch_size=4)
    assert relative_error(quantized, model, images) < 1e-2


@pytest.mark.parametrize("method", ["minmax", "bitsplit"])
def test_a_region_of_half_precision(images, method):
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.relu(m.one(x))
        return m.two(y.float())

    model = Net(forward, one=layer(3, 8), two=layer(8, 4)).eval()
    assert relative_error(bitsplit.quantize(model, images, method, weights=8), model, images) < 1e-3


def test_what_a_subclass_adds_is_no_bias(images):
    """It would be fitted into the bias and added again."""

    class Shifted(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 8, 3)
            self.shift = nn.Parameter(torch.randn(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.shift

    model = nn.Sequential(Shifted(), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    network = observe(model, images)
    assert list(network.layers) == ["2"]
    assert "changes the output after the product" in network.uncovered[0].reason
    assert relative_error(bitsplit.quantize(model, images, weights=8), model, images) < 1e-3


class TestNorms:
    def test_several_calls_before_the_norm_has_any(self, images):
        def forward(m: nn.Module, x: Tensor) -> Tensor:
            levels = [m.conv(y) for y in (x, F.avg_pool2d(x, 2))]
            return torch.cat([m.norm(y).mean((2, 3)) for y in levels], 1)

        model = Net(forward, conv=layer(3, 8), norm=nn.BatchNorm2d(8)).eval()
        with torch.no_grad():
            model.norm.running_mean.normal_()
        assert relative_error(bitsplit.quantize(model, images, weights=8), model, images) < 1e-3

    def test_other_names_and_arguments(self, images):
        class Norm(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gamma, self.beta = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
                self.register_buffer("running_mean", torch.randn(8))
                self.register_buffer("running_var", torch.rand(8) + 0.5)
                self.eps = 1e-5

            def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
                return F.batch_norm(x, self.running_mean, self.running_var, self.gamma, self.beta)

        model = Net(lambda m, x: m.norm(m.conv(x), None), conv=layer(3, 8), norm=Norm()).eval()
        assert relative_error(bitsplit.quantize(model, images, weights=8), model, images) < 1e-3
        again = bitsplit.quantize(model, images, ["nearest", "norms"], weights=8)
        assert again(images).isfinite().all()

    def test_a_detector_whose_boxes_change_places(self):
        """Its scores are all but equal, so the last digit decides about their order."""
        torch.manual_seed(0)
        model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(None, weights_backbone=None)
        plan = bitsplit.plan(model.eval(), [torch.rand(2, 3, 320, 320)], "minmax", step=detect)
        assert len(plan.layers) > 50


def detect(model: nn.Module, images: Tensor) -> object:
    return model(list(images))


def test_numbers_in_a_row_may_be_negative(images):
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        rows = torch.arange(-4.0, 4.0).view(1, 1, 8, 1).expand(len(x), 1, 8, 8)
        return m.last(torch.cat([torch.relu(m.first(x)), rows], 1))

    layers = observe(Net(forward, first=layer(3, 4), last=layer(5, 2)).eval(), images).layers
    assert not layers["last"].nonnegative


@pytest.mark.parametrize("method", ["bitsplit", bitsplit.Brecq(iterations=5, step_iterations=0)])
def test_what_the_model_draws_follows_from_the_seed(images, method):
    model = Net(
        lambda m, x: m.two(F.dropout(torch.relu(m.one(x)), 0.3, training=True)),
        one=layer(3, 8), two=layer(8, 4),
    ).eval()  # fmt: skip
    before = torch.get_rng_state()
    first, second = (bitsplit.quantize(model, images, method, weights=4, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, second)


@pytest.mark.parametrize("leave", [lambda t: t.detach().numpy(), lambda t: torch.tensor(t.tolist()).numpy()])
def test_what_numpy_reads_is_computed_in_every_pass(images, leave):
    """Crops around the place of the largest response, which NumPy finds."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        places = leave(m.where(torch.relu(m.stem(x))).flatten(1)).argmax(1)
        crops = [F.pad(x[i], (1, 1, 1, 1))[:, p // 8 :, p % 8 :][:, :3, :3] for i, p in enumerate(places)]
        return m.last(torch.relu(m.look(torch.stack(crops))).mean((2, 3)))

    parts = {"stem": layer(3, 8), "where": layer(8, 1), "look": layer(3, 8), "last": nn.Linear(8, 4)}
    model = Net(forward, **parts).eval()
    layers = {"stem": {"weights": None}, "where": {"weights": None}}
    quantized = bitsplit.quantize(model, images, "bitsplit", weights=8, layers=layers)
    assert relative_error(quantized, model, images) < 1e-3


class Detections:
    """What a model gives that knows no containers."""

    def __init__(self, scores: Tensor, features: Tensor) -> None:
        self.scores, self.features = scores, features


def test_outputs_in_an_object_of_the_model(images):
    def forward(m: nn.Module, x: Tensor) -> Detections:
        features = m.conv(x)
        return Detections(m.last(torch.relu(m.norm(features)).mean((2, 3))), features)

    model = Net(forward, conv=layer(3, 8), norm=nn.BatchNorm2d(8), last=nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model.norm.weight.fill_(3)
    plan = bitsplit.plan(model, images, weights=4, activations=4)
    assert plan.layer("last").weights == 8
    quantized = bitsplit.quantize(model, images, weights=8)
    with torch.no_grad():
        torch.testing.assert_close(quantized(images).features, model(images).features, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("chain", ["bitsplit", ["equalize", "minmax"]])
def test_a_weight_that_something_else_uses_too_stays(images, chain):
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.two(torch.relu(m.norm(m.one(x))))
        return y + F.conv2d(x, m.one.weight, padding=1)[:, :4]

    model = Net(forward, one=layer(3, 8), norm=nn.BatchNorm2d(8), two=layer(8, 4)).eval()
    with torch.no_grad():
        model.norm.running_var.uniform_(0.1, 3)
        model.norm.weight.uniform_(-2, 2)
    quantized = bitsplit.quantize(model, images, chain, weights=8)
    assert relative_error(quantized, model, images) < 1e-3
