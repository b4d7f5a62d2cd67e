"""What learning must not spoil: starts that are kept, overrides inside blocks, the model's own settings."""

from __future__ import annotations

import pytest
import torch
from function_net import Net, layer
from residual_net import METHODS, Block, same
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import CalibrationError, RecipeError
from bitsplit.quantizers import fitted_state, set_fitted_state


@pytest.mark.parametrize("bias", [True, False])
def test_a_start_that_is_kept_is_the_start(images, bias):
    net = nn.Sequential(
        layer(3, 6, bias=bias), nn.ReLU(), layer(6, 6, bias=bias), nn.ReLU(), layer(6, 4, bias=bias)
    ).eval()
    start = bitsplit.BitSplit(refit_bias=False)
    chain = [start, bitsplit.Brecq(iterations=40, rate=0.01, bias_rate=50.0)]
    with pytest.warns(UserWarning, match="collapsed"):
        learned = bitsplit.quantize(net, images, chain, weights=4)
    assert all("kept its start" in piece.remark for piece in bitsplit.report_of(learned).pieces)
    assert same(learned, bitsplit.quantize(net, images, start, weights=4))


def test_a_kept_state_is_nobody_elses():
    conv = layer(3, 4)
    conv.bias.requires_grad_(False)
    state = fitted_state(conv)
    expected = state["bias"].clone()
    set_fitted_state(conv, state)
    assert not conv.bias.requires_grad
    conv.bias.data.add_(1)
    assert torch.equal(state["bias"], expected)


@pytest.mark.parametrize("rates", [{"scale_rate": 200.0}, {"bias_rate": 1e30}])
@pytest.mark.parametrize("method", [bitsplit.Brecq, bitsplit.QDrop, bitsplit.FlexRound])
def test_a_loss_that_is_no_number_ends_learning(model, images, method, rates):
    chain = ["bitsplit", method(iterations=30, rate=0.01, **rates)]
    with pytest.warns(UserWarning, match="collapsed"):
        learned = bitsplit.quantize(model, images, chain, weights=3, activations=4)
    assert torch.isfinite(learned(images)).all()
    assert all(piece.after <= piece.before for piece in bitsplit.report_of(learned).pieces)


@pytest.mark.parametrize("step_rate", [1e3, 1e38])
@pytest.mark.parametrize("method", [bitsplit.QDrop(iterations=3), bitsplit.Global(epochs=3)])
def test_steps_beyond_all_measure_are_no_gain(model, images, method, step_rate):
    chain = ["mse", method.model_copy(update={"step_rate": step_rate})]
    with pytest.warns(UserWarning, match="collapsed|no gain"):
        learned = bitsplit.quantize(model, images, chain, weights=3, activations=4)
    assert torch.isfinite(learned(images)).all()


class Wide(nn.Module):
    """Three readers of what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.down = layer(8, 8), layer(8, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + self.down(x))


class TestPlaces:
    def net(self) -> nn.Module:
        return Net(lambda m, x: m.fc(m.b(torch.relu(m.stem(x))).mean((2, 3))),
                   stem=layer(3, 8), b=Wide(), fc=nn.Linear(8, 3)).eval()  # fmt: skip

    @pytest.mark.parametrize(
        ("override", "levels"),
        [({"activations": 8}, 50), ({"activations": None}, 2000), ({"weights": None}, 4)],
    )
    def test_an_override_inside_of_a_block_is_what_the_layer_gets(self, images, override, levels):
        net = self.net()
        quantized = bitsplit.quantize(
            net, images, "mse", weights=8, activations=2, policy="qdrop", layers={"b.down": override}
        )
        seen: dict[str, Tensor] = {}
        for name in ("one", "down"):
            module = quantized.b.get_submodule(name)
            module.register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
        quantized(images)
        assert len(seen["one"].unique()) <= 4
        count = len(seen["down"].unique())
        assert count <= 4 if levels == 4 else levels <= count

    def test_a_layer_that_two_blocks_use(self, images):
        shared = nn.Conv2d(8, 8, 1)
        first, second = Wide(), Wide()
        first.down = second.down = shared
        net = Net(lambda m, x: m.fc(m.b(m.a(torch.relu(m.stem(x)))).mean((2, 3))),
                  stem=layer(3, 8), a=first, b=second, fc=nn.Linear(8, 3)).eval()  # fmt: skip
        plan = bitsplit.plan(net, images, "mse", weights=8, activations=4, policy="qdrop")
        assert {row.argument for row in plan.layers} == {None}


def test_around_it_gradients_may_be_off_for_good(model, images):
    expected = bitsplit.quantize(model, images, METHODS["qdrop"], weights=3, activations=4)
    with torch.inference_mode():
        learned = bitsplit.quantize(model, images.clone(), METHODS["qdrop"], weights=3, activations=4)
    assert same(learned, expected)


def test_methods_that_set_weights_stand_before_those_that_learn(model, images):
    with pytest.raises(RecipeError, match="bitsplit sets all weights; in a chain it stands before"):
        bitsplit.quantize(model, images, ["adaround", "bitsplit"], weights=4)


def test_activations_alone(model, images):
    options = {"weights": None, "activations": 2, "policy": "qdrop"}
    before = bitsplit.quantize(model, images, "mse", **options)
    after = bitsplit.quantize(model, images, ["mse", bitsplit.Global(epochs=5)], **options)
    assert not torch.equal(before.first.one.input_quantizer.scale, after.first.one.input_quantizer.scale)


def test_the_whole_network_is_not_spoilt(model, images):
    start = bitsplit.quantize(model, images, "mse", weights=4)
    chain = ["mse", bitsplit.Global(epochs=2, scale_rate=1.0, bias_rate=1.0)]
    with pytest.warns(UserWarning, match="global: no gain"):
        after = bitsplit.quantize(model, images, chain, weights=4)
    assert same(after, start)


def test_a_piece_that_computes_without_gradients_is_refused(images):
    class Closed(Block):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    net = Net(lambda m, x: m.fc(m.b(torch.relu(m.stem(x))).mean((2, 3))),
              stem=layer(3, 8), b=Closed(), fc=nn.Linear(8, 3)).eval()  # fmt: skip
    with pytest.raises(CalibrationError, match="b: brecq failed: its output must depend on its weights"):
        bitsplit.quantize(net, images, bitsplit.Brecq(iterations=3), weights=3)


@pytest.mark.parametrize("activations", [None, 4])
def test_code_that_takes_no_half_precision_is_named(images, activations):
    """NumPy refuses with a TypeError, other code with a RuntimeError that names the dtype."""

    class Counted(Block):
        def forward(self, x: Tensor) -> Tensor:
            inner = self.one(x)
            return x + self.two(inner) * float(inner.detach().numpy().mean())

    net = Net(lambda m, x: m.fc(m.b(torch.relu(m.stem(x))).mean((2, 3))),
              stem=layer(3, 8), b=Counted(), fc=nn.Linear(8, 3)).eval()  # fmt: skip
    method = bitsplit.Brecq(iterations=2, step_iterations=0, precision="bf16")
    with pytest.raises(CalibrationError, match="b: brecq failed: .*try precision='fp32'"):
        bitsplit.quantize(net, images, method, weights=3, activations=activations)
