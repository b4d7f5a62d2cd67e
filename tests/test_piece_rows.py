"""The rows that a piece learns from, what their errors weigh, and which of their elements stay float."""

from __future__ import annotations

import numpy
import pytest
import torch
from function_net import Net, layer
from residual_net import METHODS, Block
from torch import Tensor, nn

import bitsplit
from bitsplit.calibration.features import FeatureStore
from bitsplit.calibration.piece import EnginePiece
from bitsplit.calibration.rows import RowTable
from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import LearnedSteps
from bitsplit.methods.qdrop import Drops
from bitsplit.methods.tasks import Sample
from bitsplit.quantizers import ActivationQuantizer, Grid


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


@pytest.mark.parametrize("method", ["brecq", "qdrop", "flexround"])
@pytest.mark.parametrize("with_rows", [0, 1])
def test_batches_of_which_nothing_reaches_a_piece(method, with_rows):
    """As in the mask head of a detector that finds nothing; in the first batch, or in a later one."""
    net = Net(lambda m, x: m.head(m.block(torch.relu(m.stem(x))[x.mean((1, 2, 3)) > 5]).mean((2, 3))),
              stem=layer(3, 8), block=Block(), head=nn.Linear(8, 4)).eval()  # fmt: skip
    images = torch.randn(24, 3, 8, 8)
    images[8 * with_rows :][:8] += 20
    learned = bitsplit.quantize(net, images, METHODS[method], weights=4, activations=4, batch_size=8)
    pieces = {piece.name: piece for piece in bitsplit.report_of(learned).pieces}
    assert set(pieces) == {"stem", "block", "head"}
    assert all(piece.after <= piece.before < 0.01 for piece in pieces.values())


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
