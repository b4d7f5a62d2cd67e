"""What learning must not spoil: starts that are kept, overrides inside blocks, batches, repeated calls."""

from __future__ import annotations

import numpy
import pytest
import torch
from function_net import Net, layer
from residual_net import METHODS, Block, same
from torch import Tensor, nn

import bitsplit
from bitsplit.calibration.features import FeatureStore
from bitsplit.calibration.piece import EnginePiece
from bitsplit.calibration.rows import RowTable
from bitsplit.errors import CalibrationError, RecipeError
from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import LearnedSteps
from bitsplit.methods.qdrop import Drops
from bitsplit.methods.tasks import Sample
from bitsplit.quantizers import ActivationQuantizer, Grid, fitted_state, set_fitted_state


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


def test_fisher_weighs_every_image_alike_whatever_its_batch(model, images):
    method = bitsplit.Brecq(iterations=40, rate=0.02, loss="fisher", step_iterations=0)
    whole, uneven = (
        bitsplit.quantize(model, images, method, weights=3, batch_size=size)._bitsplit.pieces
        for size in (40, 32)
    )
    for a, b in zip(whole, uneven, strict=True):
        assert a.before == pytest.approx(b.before, rel=1e-3)


def test_fisher_weighs_all_calls_of_a_block(images, monkeypatch):
    net = Net(lambda m, x: m.fc(m.block(m.block(torch.relu(m.stem(x)))).mean((2, 3))),
              stem=layer(3, 8), block=Block(), fc=nn.Linear(8, 5)).eval()  # fmt: skip
    weighed, weigh = {}, EnginePiece._squared_gradients

    def noting(self, *rest):
        weighed[self.name] = weigh(self, *rest)
        return weighed[self.name]

    monkeypatch.setattr(EnginePiece, "_squared_gradients", noting)
    method = bitsplit.Brecq(iterations=1, loss="fisher", step_iterations=0, start=bitsplit.Nearest())
    bitsplit.quantize(net, images, method, weights=2)
    assert len(weighed["block"]) == 2 and all(weight.sum() > 0 for weight in weighed["block"])


class Swapped(nn.Module):
    """Ends in a linear layer over the channels of images, as ConvNeXt's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layer(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("block", [Swapped(), Block()])
def test_losses_add_up_over_channels_wherever_they_are(images, monkeypatch, block):
    found, count = {}, EnginePiece.channels

    def noting(self, output):
        found[self.name] = count(self, output)
        return found[self.name]

    monkeypatch.setattr(EnginePiece, "channels", noting)
    net = nn.Sequential(layer(3, 8), nn.ReLU(), block, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(8, 5)).eval()
    method = bitsplit.Brecq(iterations=1, step_iterations=0)
    bitsplit.quantize(net, images[:, :, :4, :4], method, weights=4)
    assert found == {"0": 8, "2": 8, "5": 5}


def test_calls_of_a_quantizer_drop_different_elements():
    quantizer = ActivationQuantizer(Grid.unsigned(2), -3)
    quantizer.set(torch.tensor([1.0]))
    x = torch.rand(1000) * 2 + 0.1
    clock = Clock(10, x.device)
    with LearnedSteps([quantizer], 0.1, clock, 0.5, Drops(0.5, 7, clock).key):
        masks = [quantizer(x).detach() == x for _ in range(2)]
    assert 0.3 < float((masks[0] == masks[1]).float().mean()) < 0.7
    assert "forward" not in vars(quantizer)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_input_is_float_or_quantized_and_nothing_between(memory_format):
    quantizer = ActivationQuantizer(Grid.unsigned(2), -3)
    quantizer.set(torch.tensor([1.0]))
    student, teacher = (
        torch.full((8, 4, 5, 5), value).to(memory_format=memory_format) for value in (0.25, 0.75)
    )
    clock = Clock(10, student.device)
    drops = Drops(0.5, 7, clock)
    with LearnedSteps([quantizer], 0.1, clock, 0.5, drops.key):
        for _ in range(2):
            clock.begin()
            (x,), _ = drops.inputs(Sample((student,), {}, student, None, ((teacher,), {})))
            assert quantizer(x).unique().tolist() == [0.0, 0.75]
            assert quantizer(torch.relu(x)).unique().tolist() == [0.0, 0.25, 0.75, 1.0]


def test_a_layer_that_some_calls_do_not_reach(images):
    class Deep(Block):
        def forward(self, x: Tensor, deep: bool = True) -> Tensor:
            return super().forward(x) if deep else torch.relu(self.one(x))

    net = Net(lambda m, x: m.fc(m.b(m.b(torch.relu(m.stem(x))), deep=False).mean((2, 3))),
              stem=layer(3, 8), b=Deep(), fc=nn.Linear(8, 3)).eval()  # fmt: skip
    for name in ("brecq with scales", "qdrop", "flexround"):
        learned = bitsplit.quantize(net, images, METHODS[name], weights=3, activations=4)
        assert all(piece.after <= piece.before for piece in bitsplit.report_of(learned).pieces)


def test_inputs_by_keyword_are_mixed_too(images, monkeypatch):
    from bitsplit.methods import qdrop

    counts = []
    for call in (lambda m, x: m.b(x), lambda m, x: m.b(x=x)):
        seen: list[int] = []
        original = qdrop.mix

        def counted(*args, seen=seen, original=original):
            seen.append(1)
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(qdrop, "mix", counted)
            net = Net(lambda m, x, call=call: m.fc(call(m, torch.relu(m.stem(x))).mean((2, 3))),
                      stem=layer(3, 8), b=Block(), fc=nn.Linear(8, 3)).eval()  # fmt: skip
            bitsplit.quantize(net, images, bitsplit.QDrop(iterations=5), weights=3, activations=4)
        counts.append(len(seen))
    assert counts[0] == counts[1] > 0


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


def test_arrays_among_the_arguments(images):
    class Scaled(Block):
        def forward(self, x: Tensor, factors: numpy.ndarray) -> Tensor:
            return super().forward(x) * float(factors.sum())

    net = Net(lambda m, x: m.fc(m.b(torch.relu(m.stem(x)), numpy.ones(2)).mean((2, 3))),
              stem=layer(3, 8), b=Scaled(), fc=nn.Linear(8, 3)).eval()  # fmt: skip
    learned = bitsplit.quantize(net, images, METHODS["brecq"], weights=3, batch_size=8)
    assert "b" in [piece.name for piece in bitsplit.report_of(learned).pieces]


def test_batches_of_one_image_are_drawn_from_like_others(model, images):
    """A loader may give image by image; an iteration still takes many."""
    method = bitsplit.Brecq(iterations=40, rate=0.02, step_iterations=0)
    one, many = (
        bitsplit.quantize(model, images.split(size), method, weights=3)._bitsplit.pieces for size in (1, 40)
    )
    for a, b in zip(one, many, strict=True):
        assert a.after == pytest.approx(b.after, rel=0.05)


class TestConstants:
    """Tensors among a piece's arguments that no image has a share of."""

    def table(self, store: FeatureStore, factor: Tensor, sizes: tuple[int, ...] = (8, 4)) -> RowTable:
        table = RowTable(store, torch.device("cpu"), sum(sizes), whole=False)
        for size in sizes:
            table.add(Sample((torch.rand(size, 3), factor.clone()), {}, torch.rand(size, 2), None, None))
        return table

    def test_one_as_long_as_a_later_batch_is_not_cut(self):
        table = self.table(FeatureStore(10**6), torch.arange(4.0))
        (sample,) = table.all(64)
        assert len(sample.target) == 12
        assert sample.args[1].tolist() == [0, 1, 2, 3]

    def test_one_that_is_changed_in_place_stays(self):
        table = self.table(FeatureStore(10**6), torch.ones(1))
        draw = table.draws(5, 3, torch.Generator())
        for sample in (draw(), draw(), *table.all(6)):
            assert sample.args[1].mul_(2) == 2

    def test_a_target_without_axes_is_a_row(self):
        table = RowTable(FeatureStore(10**6), torch.device("cpu"), 1, whole=True)
        table.add(Sample((torch.ones(2),), {}, torch.tensor(3.0), None, None))
        assert [float(sample.target) for sample in table.all(4)] == [3.0]
