"""Summaries: float, quantized and partly quantized models."""

import torch
from torch import Tensor, nn

from bitsplit.calibration.attaching import attach_quantizers
from bitsplit.methods import BitSplit
from bitsplit.network import observe
from bitsplit.planning import make_plan
from bitsplit.quantizers import set_weight
from bitsplit.recipe import Recipe
from bitsplit.report import LayerResult, QuantizationReport, summary


class Net(nn.Module):
    """Declared in another order than it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)
        self.conv = nn.Conv2d(3, 4, 3)
        self.gain = nn.Parameter(torch.ones(2))
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)) * self.gain[0])


def quantized() -> nn.Module:
    model = Net()
    method = BitSplit(activations="bitsplit")  # which has no zero point
    recipe = Recipe(method=method, weights=3, activations=4, policy="all")
    plan = make_plan(observe(model, torch.randn(2, 3, 8, 8)), recipe)
    attach_quantizers(model, plan)
    for layer in (model.conv, model.fc):
        codes = torch.randint(-3, 4, layer.weight.shape)
        set_weight(layer, codes, torch.rand(layer.weight.shape[0]))
        layer.input_quantizer.set(torch.tensor([0.1]))
    results = [
        LayerResult(name=name, kind=kind, unit=name, weights=3, activations=4, error=error, seconds=seconds)
        for name, kind, error, seconds in (("conv", "Conv2d", 0.125, 1.5), ("fc", "Linear", None, 0.25))
    ]
    model._bitsplit = QuantizationReport(plan=plan, layers=tuple(results), seconds=2)
    return model


def test_a_float_model_says_so() -> None:
    found = summary(Net())
    assert not found.is_quantized and found.report is None
    assert "a float model: no layer is quantized" in str(found)
    assert [row.name for row in found.rows] == ["fc", "conv"]
    assert found.float_bytes == found.quantized_bytes == 4 * (20 + 5 + 108 + 4 + 2) + 8


def test_a_quantized_model_by_hand() -> None:
    found = summary(quantized())
    assert [row.name for row in found.rows] == ["conv", "fc"]
    conv, fc = found.rows
    assert (conv.bits, conv.input_bits, conv.input_levels) == (3, 4, "signed")
    assert (conv.error, conv.seconds, fc.error, fc.seconds) == (0.125, 1.5, None, 0.25)
    assert (conv.float_bytes, conv.quantized_bytes) == (432, (108 * 3 + 7) // 8 + 8 * 4)
    assert found.float_bytes == summary(Net()).float_bytes
    assert found.quantized_bytes == found.float_bytes - 432 - 80 + 41 + 32 + 8 + 40
    text = str(found)
    assert "quantized by bitsplit, policy all" in text and "12.50%" in text and "A4 signed" in text
    assert "2 of 2 layers have integer weights" in text


def test_a_quantized_part_of_a_float_model() -> None:
    model = nn.Sequential(quantized(), nn.Linear(5, 5))
    found = summary(model)
    assert found.is_quantized and found.report is None
    assert {row.name: row.bits for row in found.rows} == {"0.fc": 3, "0.conv": 3, "1": None}


def test_levels_with_a_zero_point() -> None:
    model = Net()
    recipe = Recipe(method="minmax", weights=3, activations=4, policy="all")
    attach_quantizers(model, make_plan(observe(model, torch.randn(2, 3, 8, 8)), recipe))
    assert summary(model).rows[1].input_levels == "unsigned"
    model.conv.input_quantizer.set(torch.tensor([0.1]), torch.tensor([5]))
    assert summary(model).rows[1].input_levels == "affine"


def test_reports_survive_json() -> None:
    report = quantized()._bitsplit
    assert QuantizationReport.from_json(report.to_json()) == report
    assert report.layer("conv").error == 0.125 and report.layer("none") is None
