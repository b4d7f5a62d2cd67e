"""The search for a range or scale: against hand-made cases, plain references and brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from range_cases import DTYPES, FLOATS, GRIDS, INF, NAN, OPS, layouts, with_threads
from torch import Tensor

from bitsplit.ops import ranges, reference
from bitsplit.ops.quantize import fake_quantize


class TestKlThreshold:
    def test_lossless_histograms_are_kept_whole(self):
        assert ranges.kl_threshold(torch.full((16,), 5), 16) == 16
        assert ranges.kl_threshold(torch.full((64,), 5), 4) == 64  # flat groups lose nothing either

    def test_hand_made_divergence(self):
        # Keep 2 of 4 cells in 1 group: P = (1, 3 + 4) / 8, Q = (2, 2) / 4.
        p = torch.tensor([1 / 8, 7 / 8], dtype=torch.float64)
        expected = (p * (p / 0.5).log()).sum().item()
        assert reference.kl_divergence(torch.tensor([1, 3, 4, 0]), 2, 1) == pytest.approx(expected, rel=1e-12)

    def test_a_rare_outlier_is_cut_off(self):
        counts = torch.zeros(2048, dtype=torch.int64)
        counts[:512] = (torch.linspace(4, 0.5, 512).exp() * 100).long()
        counts[-1] = 1
        assert 256 <= ranges.kl_threshold(counts, 128) <= 640

    def test_clipped_mass_without_a_group_of_its_own_is_never_chosen(self):
        counts = torch.tensor([8, 0, 0, 0, 8])
        assert math.isinf(reference.kl_divergence(counts, 4, 4))
        assert ranges.kl_threshold(counts, 4) == 5

    @given(
        st.lists(st.integers(0, 1000) | st.just(0), min_size=1, max_size=40).filter(any),
        st.integers(1, 40),
    )
    @settings(max_examples=150)
    def test_equals_the_reference(self, counts, levels):
        counts, levels = torch.tensor(counts), min(levels, len(counts))
        ours, slow = ranges.kl_threshold(counts, levels), reference.kl_threshold(counts, levels)
        divergences = [reference.kl_divergence(counts, kept, levels) for kept in (ours, slow)]
        assert divergences[0] == pytest.approx(divergences[1], rel=1e-9, abs=1e-12)  # the same, up to ties

    def test_real_histogram(self, device):
        counts = ranges.histogram(torch.randn(100_000).abs().to(device), 0.0, 5.0, 100)
        assert ranges.kl_threshold(counts, 16) == reference.kl_threshold(counts.cpu(), 16)

    def test_mistakes(self):
        with pytest.raises(RuntimeError, match="counts must not all be zero"):
            ranges.kl_threshold(torch.zeros(8, dtype=torch.int64), 4)
        with pytest.raises(RuntimeError, match="counts must not be negative"):
            ranges.kl_threshold(torch.tensor([3, -1]), 1)
        with pytest.raises(RuntimeError, match=r"levels must lie in \[1, bins = 8\], got 9"):
            ranges.kl_threshold(torch.ones(8, dtype=torch.int64), 9)
        with pytest.raises(RuntimeError, match="counts must be int64"):
            ranges.kl_threshold(torch.ones(8), 4)


def assert_best(x: Tensor, axis: int, levels: tuple[int, int], candidates: int, p: float) -> None:
    """lp_search finds the least error of the reference, and its error is what its grid gives."""
    low, high = ranges.channel_range(x, axis)
    args = x, axis, *levels, low, high, candidates, p
    found, expected = ranges.lp_search(*args), reference.lp_search(*args)
    torch.testing.assert_close(found.error, expected[2], rtol=2e-5, atol=0)
    y = fake_quantize(x.float(), found.scale, found.zero_point, axis, *levels)
    rows = (x.float() - y).movedim(axis, 0).flatten(1) if axis >= 0 else (x.float() - y).reshape(1, -1)
    torch.testing.assert_close(found.error, rows.double().abs().pow(p).sum(1), rtol=2e-5, atol=0)


class TestLpSearch:
    @pytest.mark.parametrize("levels", GRIDS)
    @pytest.mark.parametrize("p", [2.0, 2.4, 1.0, 0.5, 3.0])
    def test_equals_the_reference(self, device, levels, p):
        for x in layouts(torch.randn(3, 2, 6, 5).to(device)):
            assert_best(x, -1, levels, 6, p)
            assert_best(x, 1, levels, 6, p)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types(self, device, dtype):
        assert_best(torch.randn(5, 40).to(device, dtype), 0, (-7, 7), 20, 2.4)

    def test_long_rows_and_many_candidates(self, device):
        x = torch.cat([torch.randn(1, 4500), 10 * torch.rand(1, 4500)]).to(device)
        assert_best(x, 0, (-3, 3), 70, 2.0)
        assert_best(x, -1, (0, 15), 40, 2.4)

    def test_float64(self, device):
        x = torch.randn(3, 50, dtype=torch.float64).to(device)
        found = ranges.lp_search(x, 0, -7, 7, *ranges.channel_range(x, 0), candidates=30, p=2.4)
        assert found.scale.dtype == torch.float64
        y = fake_quantize(x, found.scale, found.zero_point, 0, -7, 7)
        torch.testing.assert_close(found.error, (x - y).abs().pow(2.4).sum(1), rtol=1e-12, atol=0)

    def test_hand_made(self, device):
        # Ten values of 1 and an outlier of 4 with the levels -1, 0, 1: keep the outlier's range (error 10) or
        # cut it to 1 (error 3^2 = 9).
        x = torch.tensor([1.0] * 10 + [4.0], device=device)
        found = ranges.lp_search(x, -1, -1, 1, *ranges.channel_range(x), candidates=4)
        assert found.scale.tolist() == [1]
        assert found.error.tolist() == [9]

    def test_ties_go_to_the_widest_range(self, device):
        x = torch.tensor([[0.0, 0.0], [1.0, -1.0]], device=device)
        low, high = torch.tensor([-3.0, -1.0], device=device), torch.tensor([3.0, 1.0], device=device)
        found = ranges.lp_search(x, 0, -3, 3, low, high, candidates=3)
        assert found.scale.tolist() == [1.0, torch.tensor(1 / 3).item()]
        assert found.error.tolist()[0] == 0

    @pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-40, 1e38, -1e38])
    @pytest.mark.parametrize("levels", GRIDS)
    def test_constant_tensors(self, device, value, levels):
        x = torch.full((2, 5), value, device=device)
        found = ranges.lp_search(x, 0, *levels, *ranges.channel_range(x, 0), p=2.4)
        assert found.scale.isfinite().all()
        assert (found.scale > 0).all()
        y = fake_quantize(x, found.scale, found.zero_point, 0, *levels)
        if abs(value) != 1e-40:  # below the smallest scale
            torch.testing.assert_close(y, x, rtol=1e-6, atol=0)

    def test_size_does_not_matter(self, device):
        """Ranges far from 1 are searched as well as others: no |d|^p overflows or vanishes."""
        x = torch.randn(1, 500).to(device)
        usual = ranges.lp_search(x, 0, -7, 7, *ranges.channel_range(x, 0), p=4.0)
        for exponent in (-100, -60, 60, 110):
            scaled = x * 2.0**exponent
            found = ranges.lp_search(scaled, 0, -7, 7, *ranges.channel_range(scaled, 0), p=4.0)
            assert torch.equal(found.scale, usual.scale * 2.0**exponent)
            assert torch.equal(found.error, usual.error * 2.0 ** (4 * exponent))

    @pytest.mark.parametrize("bad", [NAN, INF])
    def test_broken_values_show_in_the_error(self, device, bad):
        x = torch.randn(3, 20).to(device)
        x[1, 7] = bad
        bound = torch.full((3,), 2.0, device=device)
        found = ranges.lp_search(x, 0, -7, 7, -bound, bound)
        assert found.error.isfinite().tolist() == [True, False, True]
        assert found.scale[1] == torch.tensor(2 / 7)  # the whole range

    def test_more_candidates_are_never_worse(self, device):
        x = torch.randn(4, 300).to(device)
        bounds = ranges.channel_range(x, 0)
        few, many = (ranges.lp_search(x, 0, -3, 3, *bounds, candidates=n).error for n in (10, 100))
        assert (many <= few).all()

    def test_threads_change_nothing(self):
        x = torch.randn(5, 20_000)
        bounds = ranges.channel_range(x, 0)
        for p in (2.0, 2.4):
            one, two = (with_threads(n, ranges.lp_search, x, 0, -7, 7, *bounds, 20, p) for n in (1, 2))
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"p": 0.0}, "p must be positive and finite"),
            ({"p": NAN}, "p must be positive and finite"),
            ({"candidates": 0}, r"candidates must lie in \[1, 65536\], got 0"),
            ({"qmin": 1}, "qmin <= 0 < qmax"),
            ({"qmax": 200}, "qmin <= 0 < qmax"),
            ({"low": torch.zeros(2)}, "low must have 1 element or one per channel .3., got 2"),
            ({"high": torch.tensor([1.0, INF, 1.0])}, "high must be finite, got inf for channel 1"),
            ({"high": torch.ones(3).int()}, "high must be float32"),
            ({"x": torch.empty(3, 0)}, "x must have at least one element"),
            ({"axis": 2}, "axis must be"),
        ],
    )
    def test_mistakes(self, change, message):
        args = {"x": torch.ones(3, 2), "axis": 0, "qmin": -7, "qmax": 7}
        args |= {"low": torch.zeros(3), "high": torch.ones(3)}
        with pytest.raises(RuntimeError, match=message):
            ranges.lp_search(**(args | change))


class TestAlternateScale:
    def test_hand_made(self, device):
        # max 4, levels -1..1: scale 4 gives q = (0, 0, 0, 1), a fixed point. With 2.5 in place of 1:
        # q = (0, 0, 1, 1), scale 3.25, the same q again.
        assert ranges.alternate_scale(torch.tensor([0.0, 1.0, 1.0, 4.0], device=device), -1, 1).tolist() == [
            4
        ]
        assert ranges.alternate_scale(torch.tensor([0.0, 1.0, 2.5, 4.0], device=device), -1, 1).tolist() == [
            3.25
        ]

    @pytest.mark.parametrize("levels", [(-1, 1), (-7, 7), (-8, 7), (0, 15), (-127, 127)])
    def test_equals_the_reference(self, device, levels):
        for x in (torch.randn(3000), torch.rand(999) - 0.2, torch.randn(500).exp()):
            x = x.to(device)
            torch.testing.assert_close(
                ranges.alternate_scale(x, *levels), reference.alternate_scale(x, *levels), rtol=1e-6, atol=0
            )

    @given(st.lists(FLOATS, min_size=1, max_size=30), st.sampled_from(GRIDS))
    @settings(max_examples=200)
    def test_result_is_a_fixed_point(self, values, levels):
        x = torch.tensor(values, dtype=torch.float32).double().clamp(min=-INF if levels[0] < 0 else 0)
        x = torch.where(x.abs() < 1e-30, 0, x)
        scale = ranges.alternate_scale(x, *levels).item()
        if x.max() <= 0 and (levels[0] == 0 or x.min() >= 0):
            assert scale == 1
            return
        q = torch.round(x / scale).clamp(*levels)
        assert (x * q).sum() / (q * q).sum() == pytest.approx(scale, rel=1e-9)

    def test_no_worse_than_the_start(self, device):
        x = torch.randn(10_000).to(device)
        for qmax in (1, 3, 7):
            zero = torch.zeros(1, dtype=torch.int32, device=device)
            errors = [
                (x - fake_quantize(x, scale, zero, -1, -qmax, qmax)).square().sum()
                for scale in (ranges.alternate_scale(x, -qmax, qmax), x.abs().max().view(1) / qmax)
            ]
            assert errors[0] <= errors[1]

    def test_layout_threads_and_duplicates_change_nothing(self):
        x = torch.randn(40, 50)
        scale = ranges.alternate_scale(x, -7, 7)
        assert torch.equal(ranges.alternate_scale(x.t(), -7, 7), scale)
        assert torch.equal(with_threads(1, ranges.alternate_scale, x, -7, 7), scale)
        torch.testing.assert_close(ranges.alternate_scale(x.repeat(2, 1), -7, 7), scale)

    def test_unsigned_levels_ignore_negative_values(self):
        x = torch.randn(1000)
        assert torch.equal(ranges.alternate_scale(x, 0, 15), ranges.alternate_scale(x.clamp(min=0), 0, 15))

    @pytest.mark.parametrize(("values", "scale"), [([0.0, 0.0], 1), ([-1.0], 1), ([3.0], 0.2)])
    def test_degenerate_values(self, device, values, scale):
        x = torch.tensor(values, device=device)
        assert ranges.alternate_scale(x, 0, 15).item() == pytest.approx(scale)

    def test_sorting_handles_all_signs_and_sizes(self):
        x = torch.tensor([-3e38, 3e38, -0.0, 0.0, 1e-45, -1e-45, 1.0, -1.0])
        assert ranges.alternate_scale(x, -1, 1).item() == pytest.approx(3e38)

    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    def test_broken_values_are_an_error(self, device, bad):
        with pytest.raises(RuntimeError, match="x must be finite, got NaN or Inf"):
            ranges.alternate_scale(torch.tensor([1.0, bad], device=device), -7, 7)

    def test_empty(self):
        with pytest.raises(RuntimeError, match="at least one element"):
            ranges.alternate_scale(torch.empty(0), -7, 7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(device, dtype):
    x = torch.randn(2, 3, 4, 5).to(device, dtype)
    bounds = torch.full((3,), -1.0, device=device), torch.full((3,), 2.0, device=device)
    torch.library.opcheck(OPS.lp_search, (x, 1, -7, 7, *bounds, 5, 2.4))
    torch.library.opcheck(OPS.alternate_scale, (x, -7, 7))
    torch.library.opcheck(OPS.kl_threshold, (torch.tensor([4, 3, 2, 1]), 2))
