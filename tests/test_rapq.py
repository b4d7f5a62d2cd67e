"""RAPQ: exponents of weights learned for a block, then rounding at scales that stay."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from function_net import layer
from residual_net import Block
from torch import nn

import bitsplit
from bitsplit.methods.clock import Clock
from bitsplit.methods.learning import Diverged
from bitsplit.methods.rapq import Exponents, norm_guided
from bitsplit.methods.straight_through import RoundedWeight
from bitsplit.network.folded import folded_class
from bitsplit.network.layers import kind_of
from bitsplit.ops.rounding import rounding_schedule
from bitsplit.quantizers import Grid, attach_weight_quantizer, set_weight

CPU = torch.device("cpu")


def task(module: nn.Module, bits: int = 4) -> SimpleNamespace:
    """A layer with codes rounded to nearest at scale 1/16."""
    kind = kind_of(module)
    weight = kind.matrix(module, module.weight.detach().clone())
    attach_weight_quantizer(module, Grid.symmetric(bits, power_of_two=True))
    limit = 2 ** (bits - 1) - 1
    codes = (module.weight.detach() * 16).round().clamp(-limit, limit)
    set_weight(module, codes, torch.full((weight.shape[:2].numel(),), 1 / 16))
    return SimpleNamespace(module=module, kind=kind, weight=weight, weight_grid=module.weight_quantizer.grid)


def learn(module: nn.Module, wanted, x, rounds: int = 200) -> Exponents:
    """Exponents that make ``module`` give ``wanted``."""
    clock = Clock(rounds, CPU)
    found = Exponents([task(module)], 0.05, rounding_schedule(rounds, 1.0, 1e-4), clock)
    for _ in range(rounds):
        clock.begin()
        (module(x) - wanted).square().mean().backward()
        found.step()
        clock.advance()
    found.harden()
    return found


class TestExponents:
    def test_hardened_they_are_whole_and_codes_nearest(self):
        module, x = layer(3, 5), torch.randn(16, 3, 6, 6)
        exact = module.weight.detach().clone()
        learn(module, module(x).detach(), x, rounds=20)
        quantizer = module.weight_quantizer
        assert bitsplit.scales(nn.Sequential(module))["0.weight"].exponents is not None
        nearest = (exact / quantizer.scale.view(-1, 1, 1, 1)).round().clamp(-7, 7)
        assert torch.equal(quantizer.codes, nearest.to(torch.int8))

    @pytest.mark.parametrize(("quiet", "exponent"), [(slice(7, 8), -4), (slice(0, 7), -3)])
    def test_they_follow_what_the_output_wants(self, quiet, exponent):
        """0.06 is nearly 2^-4 and 0 at 2^-3, where 0.9 is nearly 7 * 2^-3; one of both hardly counts."""
        module, x = nn.Linear(8, 1, bias=False), torch.randn(256, 8)
        exact = torch.tensor([[0.06, 0.06, -0.06, 0.06, 0.06, -0.06, 0.06, 0.9]])
        module.weight.data.copy_(exact)
        x[:, quiet] *= 0.01
        learn(module, x @ exact.T, x)
        assert module.weight_quantizer.scale == 2.0**exponent

    def test_gradients_are_those_of_the_definition(self):
        module, x = layer(2, 3).double(), torch.randn(4, 2, 5, 5, dtype=torch.float64)
        clock = Clock(4, CPU)
        found = Exponents([task(module)], 0.0, rounding_schedule(4, 1.0, 0.7, warm_up=0.0), clock)
        one = found._layers[0]

        def loss(v):
            h = (1.2 * torch.sigmoid(v) - 0.1).clamp(0, 1)
            scale = torch.exp2(one._below + h).view(-1, 1, 1, 1)
            ratio = one.rounded.exact / scale
            rounded = ratio + (ratio.round().clamp(-7, 7) - ratio).detach()
            rounded = torch.where(ratio.round().abs() > 7, ratio.round().clamp(-7, 7), rounded)
            error = (nn.functional.conv2d(x, scale * rounded, module.bias, padding=1)).square().sum()
            return error + 0.7 * (1 - (2 * h - 1).abs() ** 20).sum()

        v = one.v.detach().clone().requires_grad_()
        (wanted,) = torch.autograd.grad(loss(v), v)
        module(x).square().sum().backward()
        one.take_gradients(torch.tensor(0.7), torch.tensor(20.0))
        torch.testing.assert_close(one.v.grad, wanted)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_no_result(scale):
    rounded = RoundedWeight(task(layer(3, 5)))
    rounded.write(torch.full((5,), 1 / 16))
    with pytest.raises(Diverged):
        rounded.harden(torch.tensor([1 / 16, 1 / 16, scale, 1 / 16, 1 / 16]))


class TestNorm:
    def norm(self, weight):
        norm = nn.BatchNorm2d(len(weight))
        norm.weight.data.copy_(torch.tensor(weight))
        norm.__class__ = folded_class(nn.BatchNorm2d)
        return norm

    def test_p_by_hand(self):
        """sigmoid((3 - 1) / 2) = 0.731059."""
        module = nn.Sequential(self.norm([9.0, 9.0]), self.norm([1.0, 2.0]))
        assert norm_guided(module, 0.1) == pytest.approx(1 + 0.1 * 0.731059, abs=1e-6)

    def test_without_a_norm_it_is_two(self):
        assert norm_guided(Block(), 0.1) == 2
        assert norm_guided(nn.Sequential(nn.BatchNorm2d(2)), 0.1) == 2  # not folded: it acts on its own


class TestMethod:
    OPTIONS = {"iterations": 120, "exponent_iterations": 40, "rate": 0.02}

    def quantized(self, model, images, chain, **options):
        return bitsplit.quantize(model, images, chain, weights=3, activations=4, **options)

    def test_every_scale_is_a_power_of_two(self, model, images):
        learned = self.quantized(model, images, bitsplit.Rapq(**self.OPTIONS))
        assert bitsplit.report_of(learned).plan.recipe.power_of_two
        assert bitsplit.report_of(learned).plan.rule == "qdrop"
        assert all(site.exponents is not None for site in bitsplit.scales(learned).values())
        pieces = bitsplit.report_of(learned).pieces
        assert sum(piece.after for piece in pieces) < 0.95 * sum(piece.before for piece in pieces)

    def test_chosen_codes_keep_their_exponents(self, model, images):
        chain = ["bitsplit", bitsplit.Rapq(**self.OPTIONS)]
        before = self.quantized(model, images, "bitsplit", power_of_two=True, policy="qdrop")
        after = self.quantized(model, images, chain, policy="qdrop")
        scales = bitsplit.scales(after)
        for name, site in bitsplit.scales(before).items():
            if name.endswith(".weight"):
                assert torch.equal(scales[name].scale, site.scale)

    @pytest.mark.parametrize("options", [{"exponent_iterations": 0}, {"iterations": 0}])
    def test_without_one_of_both(self, model, images, options):
        learned = self.quantized(model, images, bitsplit.Rapq(**{**self.OPTIONS, **options}))
        assert all(site.exponents is not None for site in bitsplit.scales(learned).values())

    def test_iterations_that_leave_none_for_the_rounding_are_refused(self):
        with pytest.raises(ValueError, match=r"more than exponent_iterations \(500\).* got 400"):
            bitsplit.Rapq(iterations=400)

    def test_the_seed_decides(self, model, images):
        one, two = (self.quantized(model, images, bitsplit.Rapq(**self.OPTIONS)) for _ in range(2))
        assert all(torch.equal(value, one.state_dict()[key]) for key, value in two.state_dict().items())

    def test_it_runs_in_integers(self, model, images):
        learned = self.quantized(model, images, bitsplit.Rapq(**self.OPTIONS))
        with torch.no_grad():
            assert torch.equal(bitsplit.IntegerNetwork(learned)(images), learned(images))
