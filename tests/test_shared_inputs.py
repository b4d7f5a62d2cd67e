"""Layers that read one tensor share a quantizer, which the first of them fits."""

from __future__ import annotations

import pytest
import torch
from function_net import layer
from residual_net import error, same
from test_resume import kill
from torch import Tensor, nn

import bitsplit
from bitsplit.calibration.features import FeatureStore

ECAQ = bitsplit.BitSplit(ecaq=True)


class Projected(nn.Module):
    """Both branches read the input; with ``before`` one of them behind an activation, and first."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.one, self.two, self.down = layer(8, 8), layer(8, 8), nn.Conv2d(8, 8, 1)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        inner = self.two(torch.relu(self.one(torch.relu(x - 0.5) if self.before else x)))
        return torch.relu(inner + self.down(x))


class Network(nn.Module):
    """A stem, such a block called so often, a classifier."""

    def __init__(self, before: bool, calls: int) -> None:
        super().__init__()
        self.stem, self.block, self.fc = layer(3, 8), Projected(before), nn.Linear(8, 5)
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for _ in range(self.calls):
            x = self.block(x)
        return self.fc(x.mean((2, 3)))


def test_all_readers_take_up_the_scales_of_channels_at_once(images):
    """A second call reads what the first gives while only one of its layers has been fitted."""
    model = Network(before=False, calls=2).eval()
    losses = {
        method: error(bitsplit.quantize(model, images, method, weights=4, activations=4), model, images)
        for method in (ECAQ, bitsplit.BitSplit())
    }
    assert losses[ECAQ] < 2 * losses[bitsplit.BitSplit()]


def test_what_has_not_been_fitted_yet_is_float(images, monkeypatch):
    """Also where it reads integers of a quantizer that an earlier layer shares with it."""
    model, found = Network(before=False, calls=1).eval(), []
    store = bitsplit.BitSplit.fit_weights

    def looking(self, task):
        found.append(error(task._engine.student, model, images))
        store(self, task)

    monkeypatch.setattr(bitsplit.BitSplit, "fit_weights", looking)
    bitsplit.quantize(model, images, ECAQ, weights=8, activations=8)
    assert len(found) == 5 and max(found) < 1e-4 * float(model(images).detach().square().mean())


def test_a_killed_run_goes_on_with_the_scales_of_channels(images, tmp_path):
    model = Network(before=False, calls=2).eval()
    whole = bitsplit.quantize(model, images, ECAQ, weights=3, activations=4)
    folder = kill(model, images, tmp_path, "bitsplit.BitSplit(ecaq=True)", "block.two")
    assert same(bitsplit.quantize(model, images, ECAQ, weights=3, activations=4, checkpoint=folder), whole)


@pytest.mark.parametrize("method", ["mse", bitsplit.BitSplit(levels="affine")])
def test_features_are_what_the_finished_unit_gives(images, monkeypatch, method):
    """Though a layer that runs late in the block fits the quantizer of what the block is called with."""
    model, kept, put = Network(before=True, calls=1).eval(), {}, FeatureStore.put

    def noting(self, key, tree, device):
        if key[:2] == ("quantized", "block"):
            kept[key[3]] = tree.clone()
        put(self, key, tree, device)

    monkeypatch.setattr(FeatureStore, "put", noting)
    quantized = bitsplit.quantize(model, images, method, weights=4, activations=2, policy="qdrop")
    assert bitsplit.report_of(quantized).plan.layer("block.down").argument == 0
    given = []
    quantized.block.register_forward_hook(lambda module, args, output: given.append(output))
    quantized(images)
    assert torch.equal(torch.cat([kept[index] for index in sorted(kept)]), given[0])
