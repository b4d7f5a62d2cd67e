"""Networks in which every scale is a power of two."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from residual_net import METHODS, Residual, error

import bitsplit
from bitsplit.errors import RecipeError
from bitsplit.ops.ranges import channel_range, grid_of_range, lp_search, power_of_two_search
from bitsplit.quantizers import ActivationQuantizer, Grid, quantized_layers
from bitsplit.quantizers.powers import (
    are_powers_of_two,
    power_below,
    power_by_distance,
    power_by_ratio,
    powers,
)

CHAINS = {
    "minmax": ["minmax"],
    "minmax affine": [bitsplit.MinMax(levels="affine")],
    "mse": ["mse"],
    "mse affine": [bitsplit.Mse(levels="affine")],
    "nearest": ["nearest"],
    "nearest affine": [bitsplit.Nearest(levels="affine")],
    "kl": [bitsplit.MinMax(activations="kl")],
    "percentile": [bitsplit.MinMax(activations="percentile")],
    "aciq": [bitsplit.MinMax(activations="aciq")],
    "alternation": [bitsplit.Nearest(activations="bitsplit")],
    "bitsplit": ["bitsplit"],
    "bitsplit affine": [bitsplit.BitSplit(levels="affine")],
    "bitsplit per channel": [bitsplit.BitSplit(ecaq=True)],
    "equalize": ["equalize", "mse", "bias_correction"],
    "global": ["bitsplit", bitsplit.Global(epochs=3)],
    "global integers": ["bitsplit", bitsplit.Global(epochs=3, rate=0.01)],
    **{name: [METHODS[name]] for name in ("adaround", "brecq with scales", "flexround", "qdrop")},
}


class TestPowers:
    @given(st.floats(1e-30, 1e30))
    def test_next_ones(self, value):
        scale = torch.tensor([value], dtype=torch.float64)
        below, by_ratio, by_distance = power_below(scale), power_by_ratio(scale), power_by_distance(scale)
        assert below <= scale < 2 * below
        for found in (below, by_ratio, by_distance):
            assert are_powers_of_two(found)
            assert found in (below, 2 * below)
        other = 3 * below - by_distance
        assert (by_distance - scale).abs() <= (other - scale).abs()
        ratio = torch.maximum(by_ratio / scale, scale / by_ratio)
        assert ratio <= 2**0.5 * (1 + 1e-12)

    def test_next_ones_far_away(self):
        ends = torch.tensor([1.4, 1.5]) * 2.0 ** torch.tensor([[-120], [-80], [80], [120]])
        assert torch.equal(power_by_ratio(ends), ends / torch.tensor([1.4, 0.75]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_of_exponents(self, dtype):
        found = powers(torch.arange(-126, 128), dtype)
        assert found.dtype == dtype
        assert found.tolist() == [2.0**k for k in range(-126, 128)]

    def test_powers_stay(self):
        scale = 2.0 ** torch.arange(-40, 40)
        for move in (power_below, power_by_ratio, power_by_distance):
            assert torch.equal(move(scale), scale)
        assert are_powers_of_two(scale)
        for value in (0.0, -1.0, 3.0, float("inf"), float("nan"), 1 + 2**-20):
            assert not are_powers_of_two(torch.tensor([1.0, value]))


class TestSearch:
    @pytest.mark.parametrize("levels", [(-7, 7), (0, 15)])
    def test_no_other_power_is_better(self, levels):
        x = torch.randn(5, 200) * torch.logspace(-3, 3, 5).unsqueeze(1) + 0.1
        low, high = channel_range(x, 0)
        found = power_of_two_search(x, 0, *levels, low, high)
        assert are_powers_of_two(found.scale)
        for row in range(5):
            errors = {}
            for exponent in range(-20, 20):
                scale, zero = 2.0**exponent, int(found.zero_point[row])
                code = (torch.round(x[row] / scale) + zero).clamp(*levels)
                errors[exponent] = float((x[row] - (code - zero) * scale).double().square().sum())
            assert found.error[row] <= min(errors.values()) * (1 + 1e-5)
        assert (found.error >= lp_search(x, 0, *levels, low, high, 1000).error * (1 - 1e-3)).all()

    def test_a_row_of_zeros(self):
        zeros = torch.zeros(1, 4)
        assert power_of_two_search(zeros, 0, -7, 7, *channel_range(zeros, 0)).scale == 1


class TestGrid:
    def test_other_scales_are_refused(self):
        quantizer = ActivationQuantizer(Grid.unsigned(4, power_of_two=True), -3)
        with pytest.raises(ValueError, match=r"powers of two, got 0\.3"):
            quantizer.set(torch.tensor([0.3]))
        assert not quantizer.is_fitted
        quantizer.set(torch.tensor([0.25]))

    @pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (-3.0, 0.1), (0.0, 5.0), (-2.0, 2.0)])
    def test_zero_keeps_its_place(self, low, high):
        grid = Grid.unsigned(8, power_of_two=True)
        scale, zero = grid_of_range(torch.tensor([low]), torch.tensor([high]), 0, 255)
        power, moved = grid.allowed(scale, zero)
        assert are_powers_of_two(power)
        covered = float(-moved * power)
        assert abs(covered - low) <= float(power) or int(moved) == 255


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        *((name, (4, 4)) for name in CHAINS),
        *(
            (name, bits)
            for name in ("mse affine", "nearest", "bitsplit", "qdrop")
            for bits in ((2, 8), (3, None))
        ),
    ],
)
def test_every_scale_is_one(model, images, name, bits):
    weights, activations = bits
    quantized = bitsplit.quantize(
        model, images, CHAINS[name], weights=weights, activations=activations, power_of_two=True
    )
    sites = bitsplit.scales(quantized)
    assert len([site for site in sites if site.endswith(".weight")]) == 6
    for site in sites.values():
        assert site.exponents is not None
        assert torch.equal(site.scale, 2.0**site.exponents)
    assert {site for site in sites if site.endswith(".input")} == (
        set() if activations is None else {f"{name}.input" for name, _ in quantized_layers(quantized)}
    )


def test_without_it_they_are_not(model, images):
    quantized = bitsplit.quantize(model, images, "mse", weights=4, activations=4)
    assert any(site.exponents is None for site in bitsplit.scales(quantized).values())


def test_bit_split_fits_codes_to_the_powers(model, images):
    def distance(method, **options):
        return error(
            bitsplit.quantize(model, images, method, weights=3, policy="all", **options), model, images
        )

    assert distance("bitsplit", power_of_two=True) < 0.7 * distance("mse", power_of_two=True)
    assert distance("bitsplit") < distance("bitsplit", power_of_two=True)


@pytest.mark.parametrize("name", ["bitsplit", "adaround", "global"])
def test_biases_are_counted_in_what_sums_are(model, images, name):
    quantized = bitsplit.quantize(
        model, images, CHAINS[name], weights=4, activations=4, power_of_two=True, policy="qdrop"
    )
    for _, layer in quantized_layers(quantized):
        counted = layer.bias / (layer.weight_quantizer.scale * layer.input_quantizer.scale)
        assert torch.equal(counted, counted.round())


@pytest.mark.parametrize("dead", [4, 8])
def test_a_channel_without_weights_keeps_its_bias(model, images, dead):
    """Its scale could be any: the bias must not suffer from it."""
    layer = model.first.two
    biases = torch.tensor([0.1, 0.3, 0.5, 0.7])
    with torch.no_grad():
        layer.weight[:dead] = 0
        layer.bias[:4] = biases
    quantized = bitsplit.quantize(model, images, "mse", weights=4, activations=4, power_of_two=True)
    found = quantized.first.two
    unit = found.weight_quantizer.scale * found.input_quantizer.scale
    assert unit[:dead].max() <= max(unit[dead:], default=2**-11)
    assert ((found.bias[:4] - biases).abs() <= unit[:4] / 2).all()


def test_the_plan_quantizes_the_input_too(model, images):
    free = bitsplit.plan(model, images, "mse", weights=4, activations=4)
    powers = bitsplit.plan(model, images, "mse", weights=4, activations=4, power_of_two=True)
    assert free.layer("stem").activations is None
    assert powers.layer("stem").activations == 8
    assert "power of two" in powers.layer("stem").why_activations
    assert "scales are powers of two" in str(powers)
    assert "powers of two" not in str(free)
    assert bitsplit.plan(model, images, "mse", power_of_two=True).layer("stem").activations is None


def test_bit_planes_need_other_scales(model, images):
    with pytest.raises(RecipeError, match="power_of_two.*bitsplit"):
        bitsplit.quantize(model, images, bitsplit.BitSplit(paper=True), power_of_two=True)


def test_saved_and_loaded(model, images, tmp_path):
    quantized = bitsplit.quantize(model, images, "mse", weights=4, activations=4, power_of_two=True)
    bitsplit.save(quantized, tmp_path / "net.safetensors")
    loaded = bitsplit.load(tmp_path / "net.safetensors", Residual().eval())
    assert torch.equal(loaded(images), quantized(images))
    assert all(layer.weight_quantizer.grid.power_of_two for _, layer in quantized_layers(loaded))
    assert all(site.exponents is not None for site in bitsplit.scales(loaded).values())


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("name", ["minmax", "nearest", "mse", "bitsplit affine", "bitsplit per channel"])
@pytest.mark.parametrize("gamma", [1e-28, 1e-34, 1e-42])
def test_channels_that_training_has_worn_away(gamma, name, power_of_two):
    """Of one layer some channels, of another all: what is left of them are their biases."""
    model, images = Residual().eval(), torch.randn(24, 3, 8, 8)
    with torch.no_grad():
        for conv, channels in ((model.stem, slice(0, 2)), (model.first.one, slice(None))):
            conv.weight[channels] *= gamma
            conv.bias[channels] = 0.5
    quantized = bitsplit.quantize(
        model, images, CHAINS[name], weights=8, activations=8, power_of_two=power_of_two, policy="qdrop"
    )
    assert error(quantized, model, images) < 1e-2
    if power_of_two:
        assert torch.equal(bitsplit.IntegerNetwork(quantized)(images), quantized(images))
