"""Linear layers with more inputs than one matrix of second moments should hold are fitted in parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bitsplit
from bitsplit.methods import bitsplit as method
from bitsplit.methods import wide


@pytest.fixture
def inputs() -> Tensor:
    """Few factors behind many inputs, as behind a real layer's."""
    torch.manual_seed(0)
    factors = torch.randn(400, 12) @ torch.randn(12, 120) / 3
    return torch.relu(factors + 0.3 * torch.randn(400, 120)) + 0.5


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(120, 60), nn.ReLU(), nn.Linear(60, 90), nn.ReLU(), nn.Linear(90, 5)).eval()


def parts_of(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (method, wide):
        monkeypatch.setattr(module, "MOST_COLUMNS", width)


def errors(model: nn.Module) -> list[float]:
    return [layer.error for layer in bitsplit.report_of(model).layers]


@pytest.mark.parametrize("options", [{}, {"refit_bias": False}, {"ecaq": True}])
def test_parts_come_near_the_whole_and_far_below_rounding(
    model: nn.Module, inputs: Tensor, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = bitsplit.BitSplit(search=0, **options)
    arguments = {"weights": 3, "activations": 8, "policy": "all"}
    whole = bitsplit.quantize(model, inputs, fit, **arguments)
    rounded = bitsplit.quantize(model, inputs, "mse", **arguments)
    parts_of(50, monkeypatch)
    parts = bitsplit.quantize(model, inputs, fit, **arguments)
    assert set(bitsplit.codes(parts)) == {"0", "2", "4"}
    assert not torch.equal(bitsplit.codes(parts)["0"].codes, bitsplit.codes(whole)["0"].codes)
    for part, together, nearest in zip(errors(parts), errors(whole), errors(rounded), strict=True):
        assert part < 2.5 * together
        assert part < 0.6 * nearest


def test_a_part_makes_good_for_the_parts_before_it(
    model: nn.Module, inputs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns twice over: what the first half loses, the second half can answer exactly as well."""
    twice = torch.cat([inputs, inputs], 1)
    layer = nn.Linear(240, 40)
    network = nn.Sequential(layer).eval()
    parts_of(120, monkeypatch)
    quantized = bitsplit.quantize(network, twice, bitsplit.BitSplit(search=0), weights=3, policy="all")
    error = (quantized(twice) - network(twice)).square().sum()
    found = bitsplit.codes(quantized)["0"]
    half = found.codes.clone()
    half[:, 120:] = (layer.weight / found.scale.view(-1, 1)).round().clamp(-3, 3)[:, 120:].to(half.dtype)
    answered = twice @ (half * found.scale.view(-1, 1)).T.float()
    response = network(twice)
    alone = (response - response.mean(0) - answered + answered.mean(0)).square().sum()
    assert error < 0.5 * alone


def test_equal_parts() -> None:
    assert [wide.part_width(n) for n in (10_001, 20_000, 25_088)] == [5001, 6667, 6272]


def test_memory_counts_the_parts(model: nn.Module) -> None:
    from bitsplit.network import kind_of

    linear, convolution = kind_of(model[0]), kind_of(nn.Conv2d(1, 1, 1))
    default, paper = bitsplit.BitSplit(), bitsplit.BitSplit(paper=True)
    assert default.memory(linear, 1, 25_088) == 64 * 6272**2
    assert default.memory(convolution, 2, 25_088) == 2 * paper.memory(linear, 2, 25_088) == 128 * 25_088**2
