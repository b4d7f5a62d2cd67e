"""Policies that quantize what a block is called with, so that its shortcut carries that too."""

from __future__ import annotations

import pytest
import torch
from residual_net import METHODS, Residual

import bitsplit

ECAQ = bitsplit.BitSplit(ecaq=True)


class TestShortcuts:
    def test_the_shortcut_carries_the_quantized_tensor(self, model, images):
        quantized = bitsplit.quantize(model, images, "mse", weights=8, activations=2, policy="qdrop")
        seen = []
        quantized.first.one.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        x = torch.rand(2, 8, 4, 4)
        output = quantized.first(x)
        assert len(seen[0].unique()) <= 4
        inner = quantized.first.two(torch.relu(quantized.first.one(seen[0])))
        assert torch.equal(output, torch.relu(inner + seen[0]))

    def test_the_plan_says_where(self, model, images):
        plan = bitsplit.plan(model, images, "qdrop", weights=4, activations=4)
        assert plan.layer("first.one").argument == 0
        assert plan.layer("first.two").argument is None
        assert "at the input of first" in str(plan)
        plain = bitsplit.plan(model, images, "bitsplit", weights=4, activations=4)
        assert plain.layer("first.one").argument is None

    @pytest.mark.parametrize(
        "method", [METHODS["qdrop"], bitsplit.BitSplit(ecaq=True)], ids=["qdrop", "ecaq"]
    )
    def test_saved_and_loaded(self, model, images, tmp_path, method):
        quantized = bitsplit.quantize(model, images, method, weights=4, activations=4, policy="qdrop")
        bitsplit.save(quantized, tmp_path / "net.safetensors")
        loaded = bitsplit.load(tmp_path / "net.safetensors", Residual().eval())
        assert torch.equal(loaded(images), quantized(images))
        assert bitsplit.report_of(loaded).pieces == bitsplit.report_of(quantized).pieces

    def test_in_place(self, model, images):
        expected = bitsplit.quantize(model, images, METHODS["qdrop"], weights=4, activations=4)
        bitsplit.quantize(model, images, METHODS["qdrop"], weights=4, activations=4, inplace=True)
        assert torch.equal(model(images), expected(images))

    def test_scales_per_channel_are_carried_as_values_and_read_as_integers(self, model, images):
        quantized = bitsplit.quantize(model, images, ECAQ, weights=4, activations=2, policy="qdrop")
        assert bitsplit.report_of(quantized).plan.layer("first.one").argument == 0
        scale = quantized.first.one.input_quantizer.scale
        assert scale.numel() == 8
        called, read = [], []
        quantized.first.register_forward_pre_hook(lambda module, args: called.append(args[0]))
        quantized.first.one.register_forward_pre_hook(lambda module, args: read.append(args[0]))
        output = quantized.first(torch.rand(2, 8, 4, 4))
        assert torch.equal(read[0], read[0].round()) and read[0].unique().tolist() == [0, 1, 2, 3]
        torch.testing.assert_close(called[0], read[0] * scale.view(-1, 1, 1))
        inner = quantized.first.two(torch.relu(quantized.first.one(called[0])))
        assert torch.equal(output, torch.relu(inner + called[0]))
