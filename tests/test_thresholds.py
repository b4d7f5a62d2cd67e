"""Thresholds computed in Python: percentiles, and ACIQ's analytic clipping."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsplit.ops import ranges, thresholds
from bitsplit.ops.quantize import fake_quantize


class TestPercentile:
    @pytest.mark.parametrize(
        ("percent", "value"), [(0, 1), (10, 1), (10.1, 2), (50, 5), (99.9, 10), (100, 10)]
    )
    def test_nearest_rank(self, device, percent, value):
        x = torch.tensor([3.0, 1, 2, 5, 4, 10, 9, 8, 7, 6], device=device)
        assert thresholds.percentile(x, percent).item() == value

    @given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.floats(0, 100))
    @settings(max_examples=100)
    def test_definition(self, values, percent):
        x = torch.tensor(values, dtype=torch.float32)
        value = thresholds.percentile(x, percent)
        assert (x <= value).sum() * 100 >= percent * x.numel() * (1 - 1e-12)
        assert (x < value).sum() * 100 <= percent * x.numel()

    def test_mistakes(self):
        for x, percent in [
            (torch.empty(0), 50),
            (torch.ones(3), -1),
            (torch.ones(3), 101),
            (torch.ones(3), math.nan),
        ]:
            with pytest.raises(ValueError, match="percentile needs values and 0 <= percent <= 100"):
                thresholds.percentile(x, percent)


DENSITIES = {
    "gauss": lambda x: (-x * x / 2).exp() / math.sqrt(2 * math.pi),
    "laplace": lambda x: (-x.abs()).exp() / 2,
}


def expected_error(distribution: str, threshold: float, bits: int) -> float:
    """E(t) of aciq_constant by numeric integration."""
    x = torch.linspace(threshold, threshold + 30, 6001, dtype=torch.float64)
    clipping = torch.trapezoid((x - threshold) ** 2 * DENSITIES[distribution](x), x).item()
    return 2 * clipping + threshold**2 / (3 * 4**bits)


class TestAciq:
    @pytest.mark.parametrize("bits", range(2, 10))
    @pytest.mark.parametrize("distribution", DENSITIES)
    def test_constants_are_the_numeric_minimum(self, distribution, bits):
        constant = thresholds.aciq_constant(distribution, bits)
        candidates = torch.arange(0.5, 15, 0.05).tolist()
        best = min(candidates, key=lambda t: expected_error(distribution, t, bits))
        assert abs(constant - best) <= 0.051
        assert expected_error(distribution, constant, bits) <= expected_error(distribution, best, bits)

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_laplace_constants_solve_the_equation(self, bits):
        t = thresholds.aciq_constant("laplace", bits)
        assert t * math.exp(t) == pytest.approx(3 * 4**bits, rel=1e-12)

    def test_threshold(self, device):
        x = torch.tensor([1.0, -3.0], device=device)
        assert thresholds.aciq_threshold(x, 2, True).item() == 3  # not above max|x|
        x = torch.cat([torch.ones(998), torch.tensor([20.0, -20.0])]).to(device)
        width = (998 + 40) / 1000
        expected = width * thresholds.aciq_constant("laplace", 4)
        assert thresholds.aciq_threshold(x, 4, True).item() == pytest.approx(expected, rel=1e-6)
        width = math.sqrt((998 + 800) / 1000)
        expected = width * thresholds.aciq_constant("gauss", 4)
        assert thresholds.aciq_threshold(x, 4, True, "gauss").item() == pytest.approx(expected, rel=1e-6)

    def test_unsigned_looks_at_positive_values_with_one_bit_more(self, device):
        x = torch.randn(100_000).to(device)
        mirrored = torch.cat([x[x > 0], -x[x > 0]])
        assert thresholds.aciq_threshold(x.relu(), 4, False).item() == pytest.approx(
            thresholds.aciq_threshold(mirrored, 5, True).item(), rel=1e-5
        )

    def test_near_the_best_threshold_of_real_samples(self):
        """On Laplace samples the analytic threshold loses little against the best one found by search."""
        x = torch.distributions.Laplace(0.0, 1.0).sample((50_000,))
        zero = torch.zeros(1, dtype=torch.int32)
        threshold = thresholds.aciq_threshold(x, 4, True).view(1)
        ours = (x - fake_quantize(x, threshold / 7, zero, -1, -7, 7)).square().sum().item()
        assert ours <= 1.1 * ranges.lp_search(x, -1, -7, 7, *ranges.channel_range(x)).error.item()

    def test_nothing_to_look_at(self):
        assert thresholds.aciq_threshold(torch.zeros(5), 4, True).item() == 0
        assert thresholds.aciq_threshold(-torch.ones(5), 4, False).item() == 0

    def test_unknown_distribution(self):
        with pytest.raises(ValueError, match="distribution must be one of"):
            thresholds.aciq_constant("cauchy", 4)
