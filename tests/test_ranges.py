"""Ranges and histograms of data, and the grid of a range: against hand-made cases and plain references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from range_cases import DTYPES, FLOATS, GRIDS, INF, NAN, OPS, layouts, with_threads

from bitsplit.ops import ranges, reference


class TestChannelRange:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 70, 1, 3), (3, 1, 90, 80), (6, 130, 2, 9)])
    def test_equals_the_reference(self, device, shape, dtype):
        for x in layouts(torch.randn(shape).to(device, dtype)):
            for axis in range(-1, 4):
                low, high = ranges.channel_range(x, axis)
                expected = reference.channel_range(x, axis)
                assert torch.equal(low, expected[0])
                assert torch.equal(high, expected[1])
                assert low.dtype == dtype

    def test_large_tensor_in_many_chunks(self, device):
        x = torch.randn(7, 5, 20_011).to(device)
        x[3, 2, 19_999], x[6, 4, 0] = 100.0, -100.0
        low, high = ranges.channel_range(x, 1)
        assert high.argmax() == 2
        assert high[2] == 100
        assert low.argmin() == 4
        assert ranges.channel_range(x)[0].tolist() == [-100]

    @pytest.mark.parametrize("place", [0, 1, 17, 59])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_nan_marks_its_channel(self, device, place, channels_last):
        x = torch.randn(1, 3, 4, 5).to(device)
        x.view(-1)[place] = NAN
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        for bound in ranges.channel_range(x, 1):
            assert bound.isnan().tolist() == [channel == place // 20 for channel in range(3)]
        assert all(bound.isnan().all() for bound in ranges.channel_range(x))

    def test_infinities_show(self, device):
        x = torch.tensor([[1.0, INF], [-INF, 2.0]], device=device)
        assert ranges.channel_range(x, 0)[0].tolist() == [1, -INF]
        assert ranges.channel_range(x, 0)[1].tolist() == [INF, 2]

    def test_one_value(self, device):
        assert [bound.tolist() for bound in ranges.channel_range(torch.tensor(3.0, device=device))] == [
            [3],
            [3],
        ]

    def test_threads_change_nothing(self):
        x = torch.randn(9, 6, 101, 37)
        for axis in (-1, 1):
            one, two = (with_threads(n, ranges.channel_range, x, axis) for n in (1, 2))
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    def test_mistakes(self):
        with pytest.raises(RuntimeError, match="at least one element, got shape"):
            ranges.channel_range(torch.empty(0, 3))
        with pytest.raises(RuntimeError, match="axis must be"):
            ranges.channel_range(torch.ones(3), 1)
        with pytest.raises(RuntimeError, match="x must be float32"):
            ranges.channel_range(torch.ones(3).int())


class TestGridOfRange:
    # low, high, (qmin, qmax), scale, zero_point
    TABLE = [
        (-3.0, 1.0, (-7, 7), 3 / 7, 0),
        (0.0, 7.0, (-7, 7), 1.0, 0),
        (0.0, 15.0, (0, 15), 1.0, 0),
        (-5.0, 10.0, (0, 15), 1.0, 5),
        (5.0, 10.0, (0, 15), 10 / 15, 0),  # widened to zero
        (-10.0, -5.0, (0, 15), 10 / 15, 15),
        (-8.0, 7.0, (-8, 7), 1.0, 0),
        (-1.0, 14.0, (-8, 7), 1.0, -7),
        (0.0, 0.0, (-7, 7), 1.0, 0),
        (0.0, 0.0, (-8, 7), 1.0, -8),
        (0.0, 1e-45, (-7, 7), torch.finfo(torch.float32).tiny, 0),
    ]

    @pytest.mark.parametrize(("low", "high", "levels", "scale", "zero_point"), TABLE)
    def test_table(self, low, high, levels, scale, zero_point):
        found = ranges.grid_of_range(torch.tensor([low]), torch.tensor([high]), *levels)
        assert found[0].tolist() == torch.tensor([scale]).tolist()
        assert found[1].tolist() == [zero_point]
        assert reference.grid_of_range(low, high, *levels) == (found[0].item(), zero_point)

    @given(FLOATS, FLOATS, st.sampled_from(GRIDS))
    @settings(max_examples=200)
    def test_one_candidate_of_lp_search_is_the_range(self, low, high, levels):
        bounds = torch.tensor([min(low, high)]), torch.tensor([max(low, high)])
        scale, zero_point = ranges.grid_of_range(*bounds, *levels)
        found = ranges.lp_search(torch.zeros(1), -1, *levels, *bounds, candidates=1)
        assert torch.equal(found.scale, scale)
        assert torch.equal(found.zero_point, zero_point)
        assert reference.grid_of_range(bounds[0].item(), bounds[1].item(), *levels) == (
            scale.item(),
            zero_point.item(),
        )


class TestHistogram:
    def test_table(self, device):
        x = torch.tensor([-9.0, 0.0, 0.9, 1.0, 1.5, 3.9, 4.0, 9.0, INF, -INF, NAN], device=device)
        assert ranges.histogram(x, 0.0, 4.0, 4).tolist() == [4, 2, 0, 4]

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("bins", [1, 2, 100, 2048, 8192])
    def test_equals_the_reference(self, device, bins, dtype):
        for x in layouts(torch.randn(3, 7, 20, 31).to(device, dtype)):
            counts = ranges.histogram(x, -2.5, 3.25, bins)
            assert torch.equal(counts, reference.histogram(x, -2.5, 3.25, bins))
            assert counts.sum() == x.numel()

    def test_many_values_and_threads(self):
        x = torch.randn(300_000).clamp(min=0)
        one, two = (with_threads(n, ranges.histogram, x, 0.0, 4.0, 64) for n in (1, 2))
        assert torch.equal(one, two)
        assert torch.equal(one, reference.histogram(x, 0.0, 4.0, 64))

    def test_empty(self, device):
        assert ranges.histogram(torch.empty(0, device=device), 0.0, 1.0, 3).tolist() == [0, 0, 0]

    @pytest.mark.parametrize(
        ("low", "high"), [(1.0, 1.0), (2.0, 1.0), (NAN, 1.0), (0.0, INF), (1.0, 1 + 1e-12)]
    )
    def test_bad_bounds(self, low, high):
        with pytest.raises(RuntimeError, match="low < high must be finite and told apart"):
            ranges.histogram(torch.ones(3), low, high, 10)

    def test_bad_bins(self):
        with pytest.raises(RuntimeError, match=r"bins must lie in \[1, 8192\], got 0"):
            ranges.histogram(torch.ones(3), 0.0, 1.0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(device, dtype):
    x = torch.randn(2, 3, 4, 5).to(device, dtype)
    torch.library.opcheck(OPS.channel_range, (x, 1))
    torch.library.opcheck(OPS.channel_range, (x, -1))
    torch.library.opcheck(OPS.histogram, (x, -1.0, 1.0, 8))
