"""What integer networks refuse, by name, instead of computing something else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from function_net import Net, layer
from integer_cases import pooled, quantized
from residual_net import Residual
from torch import nn

import bitsplit
from bitsplit.errors import IntegerError
from bitsplit.integer import IntegerTensor


class TestRefusals:
    def refused(self, model, images, message, **options):
        with pytest.raises(IntegerError, match=message):
            bitsplit.IntegerNetwork(quantized(model, images, **options))(images)

    def test_scales_of_any_value(self, images):
        self.refused(Residual(), images, "stem: its (input must be|scales must be)", power_of_two=False)

    def test_float_inputs(self, images):
        self.refused(Residual(), images, "stem: its input must be quantized", activations=None)

    def test_float_weights(self, images):
        layers = {"fc": {"weights": None}}
        self.refused(Residual(), images, "fc: its weights must be quantized", layers=layers)

    def test_a_layer_that_nothing_quantizes(self, images):
        for name in ("fc", "stem", "first.two"):
            layers = {name: {"weights": None, "activations": None}}
            self.refused(Residual(), images, f"{name}: its weights and its input must be", layers=layers)

    def test_what_integers_cannot_do(self, images):
        self.refused(pooled(F.silu), images, "silu has no form in integers")
        self.refused(pooled(lambda x: x + 0.3), images, r"add: all parts must .* got 0\.3")
        self.refused(pooled(lambda x: torch.sub(x, x, alpha=2)), images, "sub: alpha must be 1, got 2")
        zeros = torch.zeros(40, 4, 8, 8)
        self.refused(pooled(lambda x: torch.cat([x[:, :4], zeros[: len(x)]], 1)), images, "cat: .*a float")
        self.refused(pooled(lambda x: x.clamp(zeros[:1, :1])), images, "clamp: both ends must be numbers")
        self.refused(pooled(lambda x: F.pad(x, (1, 1), value=1.0)), images, "only zeros")

    def test_the_input_beside_a_layer(self, images):
        model = Net(lambda m, x: m.two(m.one(x) + x), one=layer(3, 3), two=layer(3, 4))
        self.refused(model, images, "one: add: .*got a float tensor")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_inputs_that_are_no_numbers(self, images, value):
        network = bitsplit.IntegerNetwork(quantized(pooled(torch.relu), images))
        images[3, 0, 1, 2] = value
        with pytest.raises(IntegerError, match="one.*finite numbers, got NaN or inf"):
            network(images)
        with pytest.raises(IntegerError, match=r"got an empty batch, \[0, 3, 8, 8\]"):
            network(images[:0])

    def test_a_size_that_cannot_be(self, images):
        model = Net(lambda m, x: m.up(x, output_size=[m.size, 16]), up=nn.ConvTranspose2d(3, 4, 2, stride=2))
        model.size = 17
        simulated = quantized(model, images)
        simulated.size = 20
        with pytest.raises(IntegerError, match="up.*output size"):
            bitsplit.IntegerNetwork(simulated)(images)

    def test_what_was_changed_since(self, images):
        simulated = quantized(pooled(torch.relu), images)
        simulated.two.weight.data[0, 0, 0, 0] += 1e-3
        with pytest.raises(IntegerError, match="two: its weight must be what its codes stand for"):
            bitsplit.IntegerNetwork(simulated)
        simulated.one.input_quantizer.scale.mul_(1.5)
        with pytest.raises(IntegerError, match="one: its scales must be powers of two, got 0"):
            bitsplit.IntegerNetwork(simulated)

    def test_changes_of_a_part(self, images):
        def change(x):
            x[:, :2].add_(x[:, 2:4])
            return x

        def changed_behind_a_view(x):
            part = x[:, :8]
            x.relu_()
            return part

        self.refused(pooled(change), images, "add_: a change in place")
        self.refused(pooled(changed_behind_a_view), images, "relu_: a change in place")

    def test_means_that_do_not_fit_together(self, images):
        def unlike(x):
            return torch.cat([F.avg_pool2d(x, 3, 1, 1), x], 1)[:, :8]

        self.refused(pooled(unlike), images, "no common integers")

    def test_a_float_model(self):
        with pytest.raises(IntegerError, match="not quantized"):
            bitsplit.IntegerNetwork(Residual())

    def test_sums_that_might_overflow(self, images):
        simulated = quantized(Residual(), images)
        simulated.fc.bias.data += 2.0**20
        with pytest.raises(IntegerError, match="fc: (sums may reach|its bias is no int32)"):
            bitsplit.IntegerNetwork(simulated)

    def test_values_beyond_int32(self):
        far = IntegerTensor(torch.tensor([2**30]).int(), torch.tensor([0]).int())
        fine = IntegerTensor(torch.tensor([1]).int(), torch.tensor([-5]).int())
        with pytest.raises(IntegerError, match="add: sums .* leave int32"):
            far + fine

    def test_a_mean_that_would_wrap_in_int64(self):
        values, exponents = [2**30] * 4 + [5], [32] * 4 + [0]
        wide = IntegerTensor(torch.tensor([values]).int(), torch.tensor([exponents]).int())
        with pytest.raises(IntegerError, match="mean: sums .* leave int32"):
            wide.mean(1)
