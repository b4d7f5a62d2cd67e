"""What a run says about itself: memory, forecast and used, and the errors of layers."""

from __future__ import annotations

import pytest
import torch
from function_net import Net, layer
from residual_net import METHODS, Block
from torch import Tensor, nn

import bitsplit
from bitsplit.calibration.features import FeatureStore
from bitsplit.calibration.forecast import row_bytes
from bitsplit.data import as_batches
from bitsplit.network import observe
from bitsplit.report import summary


@pytest.mark.parametrize("memory", [None, 0])
def test_what_features_took_stands_beside_the_forecast(model, images, memory):
    def features(method) -> dict[str, int]:
        quantized = bitsplit.quantize(model, images, method, weights=3, activations=4, memory=memory)
        found = bitsplit.report_of(quantized).features
        assert f"features {found['used'] / 2**20:.1f} MiB" in str(summary(quantized))
        return found

    two_outputs_of_both_models = 2 * 2 * 40 * 8 * 8 * 8 * 4
    assert features("minmax") == {"forecast": two_outputs_of_both_models, "used": two_outputs_of_both_models}
    for name in ("brecq", "brecq by stages", "brecq at once", "qdrop", "brecq fisher"):
        found = features(METHODS[name])
        assert found["forecast"] / 2 < found["used"] <= found["forecast"]


@pytest.mark.parametrize("name", ["brecq", "brecq fisher", "qdrop"])
def test_the_forecast_knows_the_rows(model, images, name):
    """What is kept of the largest unit: 8 channels of 8x8 in (for qdrop twice) and out (for fisher twice)."""
    network = observe(model, images)
    expected = {"brecq": 2, "brecq fisher": 3, "qdrop": 3}[name]
    batches = as_batches(images, 8, inputs_only=True, device=torch.device("cpu"))
    assert row_bytes(network, [METHODS[name]], batches) == expected * 40 * 8 * 8 * 8 * 4


@pytest.mark.parametrize("asked", [16, 40])
def test_the_forecast_knows_what_a_trial_compares_with(images, monkeypatch, asked):
    """The network gives far more than its features hold."""
    net = nn.Sequential(layer(3, 8), nn.ReLU(), layer(8, 8), nn.Upsample(scale_factor=4)).eval()
    found = []
    monkeypatch.setattr(FeatureStore, "close", lambda store: found.append((store.reserved, store.most)))
    bitsplit.sensitivities(
        net, images, "minmax", policy="all", widths=(2, 8), batch_size=8, images=asked, outputs="values"
    )
    ((forecast, used),) = found
    assert forecast == used > asked * 8 * 32 * 32 * 4


class Wide(nn.Module):
    """A block whose layers hold more than it gets and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.reduce = layer(8, 96), layer(96, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(torch.relu(self.expand(x)))


def test_the_forecast_knows_the_rows_of_layers_inside_of_units(images):
    model = nn.Sequential(layer(3, 8), nn.ReLU(), Wide(), Wide()).eval()
    quantized = bitsplit.quantize(model, images, bitsplit.AdaRound(iterations=2), weights=3)
    found = bitsplit.report_of(quantized).features
    rows = (96 + 8) * 8 * 8 * 4 * len(images)
    assert rows < found["used"] <= found["forecast"] < 2 * rows


def test_the_error_of_a_layer_covers_all_of_its_calls(images):
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        for _ in range(3):
            x = m.block(x)
        return m.fc(x.mean((2, 3)))

    model = Net(forward, stem=layer(3, 8), block=Block(), fc=nn.Linear(8, 3)).eval()
    quantized = bitsplit.quantize(model, images, "mse", weights=3, activations=4)
    seen: dict[nn.Module, list[Tensor]] = {model: [], quantized: []}
    for network, outputs in seen.items():
        network.block.two.register_forward_hook(lambda *call, kept=outputs: kept.append(call[-1].detach()))
        network(images)
    wanted, got = (torch.stack(outputs) for outputs in seen.values())
    expected = ((got - wanted).square().sum() / wanted.square().sum()).item()
    assert len(wanted) == 3
    assert bitsplit.report_of(quantized).layer("block.two").error == pytest.approx(expected, rel=1e-3)
