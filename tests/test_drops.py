"""Which elements learned steps and mixing take: chance, repeatable by key, and by place in memory."""

import math

import pytest
import torch
from step_cases import dropped_of, key, layouts, memory_of

from bitsplit.ops.steps import mix

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NAN, INF = math.nan, math.inf


class TestChance:
    @pytest.mark.parametrize("drop", [0.01, 0.25, 0.5, 0.9])
    def test_the_share_is_met(self, device, drop):
        x = torch.empty(400, 500, device=device)
        for iteration in range(5):
            share = dropped_of(x, drop, key(0, iteration, device)).double().mean().item()
            assert abs(share - drop) < 5 * math.sqrt(drop * (1 - drop) / x.numel())

    def test_never_and_always(self, device):
        x = torch.empty(10**5, device=device)
        assert not dropped_of(x, 0.0, key(device=device)).any()
        assert dropped_of(x, 1.0, key(device=device)).all()

    def test_seeds_iterations_and_neighbours_are_independent(self, device):
        x = torch.empty(200_000, device=device)
        first = dropped_of(x, 0.5, key(1, 1, device))
        others = [dropped_of(x, 0.5, key(*pair, device)) for pair in [(1, 2), (2, 1), (-1, 1), (1, 2**40)]]
        for other in [*others, first.roll(1), first.roll(500)]:
            agreeing = (first == other).double().mean().item()
            assert abs(agreeing - 0.5) < 2.5 / math.sqrt(x.numel())

    def test_the_same_key_drops_the_same(self, device):
        x = torch.empty(5000, device=device)
        assert torch.equal(dropped_of(x, 0.5, key(1, 2, device)), dropped_of(x, 0.5, key(1, 2, device)))

    def test_more_are_dropped_with_a_larger_share(self, device):
        x = torch.empty(5000, device=device)
        few, many = (dropped_of(x, drop, key(1, 2, device)) for drop in (0.3, 0.6))
        assert not (few & ~many).any()


class TestMix:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_every_element_is_of_one_of_both(self, device, dtype, share):
        a, b = torch.zeros(300, 400).to(device, dtype), torch.ones(300, 400).to(device, dtype)
        y = mix(a, b, share, key(device=device))
        assert y.dtype == dtype and ((y == 0) | (y == 1)).all()
        deviation = math.sqrt(share * (1 - share) / a.numel())
        assert abs(y.double().mean().item() - share) <= 5 * deviation

    def test_bits_are_moved_as_they_are(self, device):
        a, b = torch.tensor([[NAN, -0.0, INF, 1e-45], [-INF, 0.0, NAN, -1e-45]], device=device).repeat(1, 50)
        y = mix(a, b, 0.5, key(device=device)).view(torch.int32)
        assert ((y == a.view(torch.int32)) | (y == b.view(torch.int32))).all()

    def test_memory_formats(self, device):
        others = layouts(torch.randn(2, 3, 5, 7).to(device))
        for name, a in layouts(torch.randn(2, 3, 5, 7).to(device)).items():
            for b in others.values():
                y = mix(a, b, 0.5, key(device=device))
                assert y.stride() == torch.empty_like(a).stride(), name
                like_a = torch.empty_like(a).copy_(b)
                flat = mix(memory_of(a), memory_of(like_a), 0.5, key(device=device))
                assert torch.equal(memory_of(y), flat), name

    @pytest.mark.parametrize("share", [0.2, 0.5])
    def test_the_elements_that_learned_quantize_drops(self, device, share):
        for a in layouts(torch.zeros(20, 30, 5, 7, device=device)).values():
            mixed = mix(a, a + 1, share, key(1, 2, device)) == 1
            assert torch.equal(mixed, dropped_of(a, share, key(1, 2, device)))

    def test_no_gradient(self):
        a = torch.ones(3, requires_grad=True)
        assert not mix(a, a * 2, 0.5, key()).requires_grad
