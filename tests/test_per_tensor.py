"""One scale and one zero point for all output channels of a layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from artifact_models import Odd, train_norms
from integer_cases import assert_same
from residual_net import SHORT, error
from split_layers import Layer
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import RecipeError
from bitsplit.methods import wide
from bitsplit.methods.base import WeightMethod
from bitsplit.ops.levels import level_choices, levels_of
from bitsplit.ops.split import Descent, polish
from bitsplit.ops.starts import polish_together
from bitsplit.quantizers import Grid, WeightQuantizer

METHODS: list[type[WeightMethod]] = [bitsplit.MinMax, bitsplit.Nearest, bitsplit.Mse, bitsplit.BitSplit]
LEARNED = {
    "brecq": bitsplit.Brecq(
        **SHORT, step_iterations=20, scale_rate=1e-2, start=bitsplit.Mse(per_tensor=True)
    ),
    "qdrop": bitsplit.QDrop(**SHORT, start=bitsplit.Mse(per_tensor=True, levels="affine")),
    "flexround": bitsplit.FlexRound(iterations=60, rate=5e-3, start=bitsplit.Mse(per_tensor=True)),
    "rapq": bitsplit.Rapq(iterations=60, exponent_iterations=30, start=bitsplit.Mse(per_tensor=True)),
}


def assert_one_scale(quantized: nn.Module) -> None:
    found = bitsplit.codes(quantized)
    assert found
    for layer in found.values():
        assert len(layer.scale.unique()) == len(layer.zero_point.unique()) == 1


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("levels", ["symmetric", "affine"])
@pytest.mark.parametrize("method", METHODS)
def test_of_all_kinds_of_layers(
    method: type[WeightMethod], levels: str, power_of_two: bool, tmp_path: Path
) -> None:
    model, images = train_norms(Odd()).eval(), torch.randn(24, 3, 8, 8)
    chosen = method(per_tensor=True, levels=levels)
    quantized = bitsplit.quantize(model, images, chosen, weights=4, power_of_two=power_of_two)
    assert_one_scale(quantized)
    bitsplit.save(quantized, tmp_path / "it.bitsplit")
    loaded = bitsplit.load(tmp_path / "it.bitsplit", train_norms(Odd()).eval())
    assert torch.equal(loaded(images), quantized(images))
    assert all(
        layer.weight_quantizer.grid.per_tensor
        for layer in loaded.modules()
        if hasattr(layer, "weight_quantizer")
    )


def test_the_nearest_codes_of_a_hand_made_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    model[0].weight.data = torch.tensor([[1.0, -0.5, 0.25], [7.0, 0.6, -3.4]])
    quantized = bitsplit.quantize(
        model, torch.randn(8, 3), bitsplit.MinMax(per_tensor=True), weights=4, policy="all"
    )
    found = bitsplit.codes(quantized)["0"]
    assert found.scale.tolist() == [1.0, 1.0]
    assert found.codes.tolist() == [[1, 0, 0], [7, 1, -3]]


@pytest.mark.parametrize("levels", ["symmetric", "affine"])
def test_the_closed_form_answers_better_than_rounding(model: nn.Module, images: Tensor, levels: str) -> None:
    options = {"per_tensor": True, "levels": levels}
    rounded, fitted = (
        error(bitsplit.quantize(model, images, method(**options), weights=3), model, images)
        for method in (bitsplit.Mse, bitsplit.BitSplit)
    )
    free = error(bitsplit.quantize(model, images, bitsplit.BitSplit(levels=levels), weights=3), model, images)
    assert free < fitted < rounded


@pytest.mark.parametrize("method", LEARNED)
def test_what_is_learned_keeps_one(model: nn.Module, images: Tensor, method: str) -> None:
    start, learned = (
        bitsplit.quantize(model, images, chosen, weights=3, activations=4)
        for chosen in (LEARNED[method].start, LEARNED[method])
    )
    assert_one_scale(learned)
    scales = [
        torch.cat([layer.scale for layer in bitsplit.codes(found).values()]) for found in (start, learned)
    ]
    assert torch.equal(*scales) == (method == "qdrop")  # which does not learn them
    assert all(piece.after <= piece.before for piece in bitsplit.report_of(learned).pieces)


def test_the_whole_network_is_tuned_with_one(model: nn.Module, images: Tensor) -> None:
    chain = [bitsplit.BitSplit(per_tensor=True), bitsplit.Global(epochs=2)]
    assert_one_scale(bitsplit.quantize(model, images, chain, weights=3))


def test_a_wide_layer_is_fitted_in_parts_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "MOST_COLUMNS", 16)
    model, rows = nn.Sequential(nn.Linear(40, 6)).eval(), torch.randn(60, 40)
    rounded, fitted = (
        bitsplit.quantize(model, rows, method(per_tensor=True, levels="affine"), weights=3, policy="all")
        for method in (bitsplit.Mse, bitsplit.BitSplit)
    )
    assert_one_scale(fitted)
    assert error(fitted, model, rows) < error(rounded, model, rows)


def test_integers_run_it(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    assert_same(model.eval(), images, method=bitsplit.BitSplit(per_tensor=True))


def test_several_widths_keep_one(model: nn.Module, images: Tensor) -> None:
    plan = bitsplit.mixed(model, images, bitsplit.Mse(per_tensor=True), bits=3, widths=(2, 4), policy="all")
    assert_one_scale(bitsplit.quantize(model, images, plan.recipe))


class TestPolishTogether:
    def found(self, layer: Layer, scale: float) -> Descent:
        codes = (layer.weight / scale).round().clamp(-3, 3).to(torch.int8)
        scales = torch.full(layer.weight.shape[:2], scale, dtype=torch.float64)
        levels = levels_of(level_choices(3), scales)
        return polish(codes, scales, *layer.moments(), levels, 100, fit_scale=False)

    def test_no_scale_suits_its_codes_better(self) -> None:
        layer = Layer(1, 5, 12)
        start = self.found(layer, 0.4)
        found = polish_together(start, *layer.moments(), 100)
        assert found.explained.sum() > start.explained.sum()
        scale, codes = found.scale.unique().item(), found.codes.double()
        gram, cross = (moment.double() for moment in layer.moments())
        squares, products = ((codes @ gram) * codes).sum(), (codes * cross.transpose(1, 2)).sum()

        def explained(s: float) -> Tensor:
            return 2 * s * products - s * s * squares

        for other in (0.99, 1.01):
            assert explained(scale) > explained(other * scale)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (bitsplit.BitSplit(per_tensor=True, reestimate_norms=True), "needs a scale for every channel"),
        ([bitsplit.Mse(per_tensor=True), "norms"], "norms needs a scale for every channel"),
    ],
)
def test_what_needs_a_scale_for_every_channel(chain: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        bitsplit.quantize(nn.Linear(2, 2), torch.randn(4, 2), chain)


def test_bit_planes_need_a_scale_for_every_row() -> None:
    with pytest.raises(ValueError, match='per_tensor needs starts="several"'):
        bitsplit.BitSplit(per_tensor=True, paper=True)


def test_several_scales_are_refused() -> None:
    quantizer = WeightQuantizer(Grid.symmetric(4, per_tensor=True), 0)
    with pytest.raises(ValueError, match="one scale and one zero point for all channels"):
        quantizer.set(torch.zeros(2, 3), torch.tensor([1.0, 2.0]))
