"""Weights on all 2^bits levels, with a zero point for every output channel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from artifact_models import Odd, train_norms
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import RecipeError
from bitsplit.methods import bitsplit as bitsplit_method
from bitsplit.methods import wide
from bitsplit.methods.base import WeightMethod
from bitsplit.plan import LayerPlan, Plan

METHODS: list[type[WeightMethod]] = [bitsplit.MinMax, bitsplit.Nearest, bitsplit.Mse, bitsplit.BitSplit]


@pytest.fixture
def model() -> nn.Module:
    return train_norms(Odd()).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 8, 8)


def one_row(weight: list[float], method: str, bits: int = 2) -> tuple[list[int], float, int]:
    """Codes, scale and zero point of a layer of one output."""
    model = nn.Sequential(nn.Linear(len(weight), 1))
    model[0].weight.data = torch.tensor([weight])
    chain = {"name": method, "levels": "affine"}
    quantized = bitsplit.quantize(
        model.eval(), torch.randn(50, len(weight)), chain, weights=bits, policy="all"
    )
    found = bitsplit.codes(quantized)["0"]
    return found.codes[0].tolist(), found.scale.item(), found.zero_point.item()


def errors_of(quantized: nn.Module) -> Tensor:
    """Of the layers' responses, relative to the float ones."""
    return torch.tensor([layer.error for layer in bitsplit.report_of(quantized).layers])


# ---- Methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["minmax", "mse", "nearest", "bitsplit"])
def test_four_equal_steps_are_met_exactly(method: str) -> None:
    """-0.5, 0, 0.5, 1 are four levels; three symmetric ones cannot hold them."""
    codes, scale, zero_point = one_row([-0.5, 0.0, 0.5, 1.0], method)
    assert codes == [0, 1, 2, 3] and zero_point == 1
    assert scale == pytest.approx(0.5, rel=1e-4)
    codes, _, zero_point = one_row([0.5, 0.0, -0.5, -1.0], method)
    assert codes == [3, 2, 1, 0] and zero_point == 2


def test_minmax_is_the_range_with_zero_in_it() -> None:
    assert one_row([-1.0, 2.0, 0.4], "minmax") == ([0, 3, 1], 1.0, 1)
    assert one_row([1.0, 3.0, 2.2], "minmax") == ([1, 3, 2], 1.0, 0)
    codes, scale, zero_point = one_row([-0.1, 0.41], "minmax", bits=8)
    assert (codes, zero_point) == ([0, 255], 50) and scale == pytest.approx(0.002)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_weights_are_their_codes(
    model: nn.Module, images: Tensor, method: type[WeightMethod], bits: int
) -> None:
    quantized = bitsplit.quantize(model, images, method(levels="affine"), weights=bits, policy="all")
    found = bitsplit.codes(quantized)
    assert list(found) == ["stem", "grouped", "up", "head"]
    for name, layer in found.items():
        module = quantized.get_submodule(name)
        assert layer.codes.dtype == torch.uint8 and int(layer.codes.max()) < 2**bits
        assert layer.zero_point.min() >= 0 and layer.zero_point.max() < 2**bits
        per_channel = module.weight_quantizer.per_channel
        steps = layer.codes.int() - per_channel(layer.zero_point)
        assert torch.equal(module.weight, steps.float() * per_channel(layer.scale))
        if method in (bitsplit.Nearest, bitsplit.BitSplit):
            middle = 2 ** (bits - 1)
            assert set(layer.zero_point.tolist()) <= ({128} if bits == 8 else {middle - 1, middle})
    if bits == 2 and method in (bitsplit.Nearest, bitsplit.BitSplit):
        assert set(found["stem"].zero_point.tolist()) == {1, 2}  # else nothing was chosen


@pytest.mark.parametrize("method", [bitsplit.Mse, bitsplit.Nearest, bitsplit.BitSplit])
def test_the_fourth_level_helps(model: nn.Module, images: Tensor, method: type[WeightMethod]) -> None:
    symmetric, affine = (
        errors_of(bitsplit.quantize(model, images, chain, weights=2, policy="all"))
        for chain in (method(), method(levels="affine"))
    )
    assert affine[:3].mean() < 0.95 * symmetric[:3].mean()  # the last layer has six weights a row


def test_columns_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bitsplit_method, wide):
        monkeypatch.setattr(module, "MOST_COLUMNS", 50)
    inputs = torch.relu(torch.randn(400, 12) @ torch.randn(12, 120) / 3 + 0.3 * torch.randn(400, 120))
    model = nn.Sequential(nn.Linear(120, 60)).eval()
    nn.init.normal_(model[0].weight)
    errors = []
    for levels in ("symmetric", "affine"):
        method = bitsplit.BitSplit(search=0, levels=levels)
        quantized = bitsplit.quantize(model, inputs, method, weights=2, policy="all")
        errors.append(errors_of(quantized).item())
    assert errors[1] < 0.9 * errors[0]
    assert set(bitsplit.codes(quantized)["0"].zero_point.tolist()) == {1, 2}


# ---- What comes after the weights ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "arguments"),
    [
        ([{"name": "minmax", "levels": "affine"}, "norms", "bias_correction"], {"weights": 3}),
        ([{"name": "bitsplit", "levels": "affine"}, "norms"], {"weights": 2, "activations": 8}),
        ([{"name": "bitsplit", "levels": "affine", "ecaq": True}], {"weights": 2, "activations": 4}),
        (["equalize", {"name": "mse", "levels": "affine"}, "bias_correction"], {"weights": 4}),
    ],
)
def test_saved_and_loaded_again(
    model: nn.Module, images: Tensor, chain: list, arguments: dict, tmp_path: Path
) -> None:
    """Bit for bit, after steps that move scales and biases; and the responses are near the float ones."""
    quantized = bitsplit.quantize(model, images, chain, policy="all", **arguments)
    bitsplit.save(quantized, tmp_path / "model.safetensors")
    loaded = bitsplit.load(tmp_path / "model.safetensors", Odd())
    assert torch.equal(loaded(images), quantized(images))
    before, after = bitsplit.codes(quantized), bitsplit.codes(loaded)
    for name, layer in before.items():
        assert layer.codes.dtype == after[name].codes.dtype == torch.uint8
        assert torch.equal(layer.codes, after[name].codes)
        assert torch.equal(layer.zero_point, after[name].zero_point)
    assert any(layer.zero_point.any() for layer in before.values())
    assert str(bitsplit.summary(loaded)) == str(bitsplit.summary(quantized))
    assert errors_of(quantized).max() < 0.3


def test_the_summary_says_so(model: nn.Module, images: Tensor) -> None:
    for levels, cell in (("symmetric", "W2"), ("affine", "W2 affine")):
        quantized = bitsplit.quantize(
            model, images, bitsplit.MinMax(levels=levels), weights=2, layers={"head": {"weights": None}}
        )
        found = bitsplit.summary(quantized)
        rows = {row.name: row for row in found.rows}
        assert rows["grouped"].levels == levels and rows["head"].levels is None
        assert any(f"│ {cell} " in line for line in str(found).splitlines() if "grouped" in line)


# ---- Plan and recipe -------------------------------------------------------------------------------------


def plan_of(model: nn.Module, images: Tensor, **method: object) -> Plan:
    layers = {"head": {"weights": None}}
    return bitsplit.plan(model, images, {"name": "bitsplit", **method}, weights=2, layers=layers)


def test_the_plan_says_so(model: nn.Module, images: Tensor) -> None:
    symmetric, affine = plan_of(model, images), plan_of(model, images, levels="affine")
    assert [layer.weight_levels for layer in symmetric.layers] == [*["symmetric"] * 3, None]
    assert [layer.weight_levels for layer in affine.layers] == [*["affine"] * 3, None]
    assert affine.quantized_bytes == symmetric.quantized_bytes
    for name, cell in (("stem", "W8 affine"), ("grouped", "W2 affine"), ("head", "float")):
        (line,) = (line for line in str(affine).splitlines() if f"│ {name} " in line)
        assert f"│ {cell} " in line
    assert "affine" not in str(symmetric)
    assert Plan.from_json(affine.to_json()) == affine
    assert Plan.from_json(affine.to_json()).fingerprint() != symmetric.fingerprint()


def test_rows_of_older_plans_are_symmetric(model: nn.Module, images: Tensor) -> None:
    row = plan_of(model, images).layers[1]
    old = row.model_dump(exclude={"weight_levels"})
    assert LayerPlan(**old) == row


def test_recipes_carry_the_levels() -> None:
    text = "method: {name: nearest, levels: affine}\nweights: 2\n"
    recipe = bitsplit.Recipe.from_yaml(text)
    assert recipe.method == (bitsplit.Nearest(levels="affine"),)
    assert bitsplit.Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"paper": True, "levels": "affine"}, "paper=True fixes levels"),
        ({"starts": "planes", "levels": "affine"}, 'levels="affine" needs starts="several"'),
        ({"levels": "asymmetric"}, "'symmetric' or 'affine'"),
    ],
)
def test_mistakes(options: dict, message: str) -> None:
    with pytest.raises((RecipeError, ValueError), match=message):
        bitsplit.BitSplit(**options)
