"""Fitted weights are held near the float ones as far as images that they were not fitted to ask for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bitsplit
from bitsplit.errors import BitsplitError
from bitsplit.methods.activations import MinMaxActivations
from bitsplit.methods.base import WeightMethod
from bitsplit.methods.ridge import SHARES, chosen_share, held
from bitsplit.methods.statistics import Statistics
from bitsplit.ops.levels import level_choices
from bitsplit.quantizers import Grid

GRID, CHOICES = Grid.symmetric(4), level_choices(4)


def sums_of(x: Tensor, y: Tensor) -> Statistics:
    """Of inputs [n, N] and responses [n, M]."""
    x, y = x.double(), y.double()
    moments = (x.T @ x, x.T @ y, x.sum(0), y.sum(0), y.square().sum(0))
    return Statistics(*(moment[None] for moment in moments), count=len(x))


def images(count: int, seed: int, inputs: int = 80) -> Tensor:
    """Few strong factors, and some noise in every input."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, inputs, generator=torch.Generator().manual_seed(1))
    strong = torch.randn(count, 6, generator=generator) @ mixing
    return strong + 0.5 * torch.randn(count, inputs, generator=generator)


def halves(count: int, weight: Tensor) -> tuple[Statistics, Statistics]:
    """The layer reads noisy inputs and shall give what the clean ones gave."""
    return tuple(_noisy(images(count // 2, seed), weight, seed) for seed in (2, 3))


def _noisy(clean: Tensor, weight: Tensor, seed: int) -> Statistics:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed + 100))
    return sums_of(clean + 0.3 * noise, clean @ weight[0].T)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(1, 12, 80, generator=torch.Generator().manual_seed(0))


def test_a_ridge_is_every_input_seen_alone_with_the_float_answer(weight: Tensor) -> None:
    x = images(50, 2)
    y = x @ weight[0].T + 1
    extra = torch.diag((0.3 * x.double().square().sum(0)).sqrt())
    by_hand = sums_of(torch.cat([x, extra]), torch.cat([y, extra @ weight[0].double().T]))
    ridged = held(weight, sums_of(x, y), 0.3)
    for field in ("gram", "cross", "sum_yy"):
        torch.testing.assert_close(getattr(ridged, field), getattr(by_hand, field))
    plain = sums_of(x, y)
    assert (ridged.count, held(weight, plain, 0.0)) == (50, plain)


def test_few_images_hold_the_weights_and_many_leave_them_free(weight: Tensor) -> None:
    shares = [chosen_share(weight, halves(n, weight), GRID, CHOICES, False) for n in (60, 400, 40_000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] >= 0.1
    assert shares[-1] == 0
    assert set(shares) <= set(SHARES)


def test_the_halves_may_be_exchanged(weight: Tensor) -> None:
    one, other = halves(200, weight)
    chosen = [chosen_share(weight, pair, GRID, CHOICES, False) for pair in ((one, other), (other, one))]
    assert chosen[0] == chosen[1]


def test_one_half_without_images_decides_nothing(weight: Tensor) -> None:
    some, _ = halves(60, weight)
    assert chosen_share(weight, (some, sums_of(*some_of_none(weight))), GRID, CHOICES, False) == 0


def some_of_none(weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(0, weight.shape[2]), torch.zeros(0, weight.shape[1])


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(80, 120), nn.ReLU(), nn.Linear(120, 120), nn.ReLU(), nn.Linear(120, 10)]
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def error(quantized: nn.Module, network: nn.Module, x: Tensor) -> float:
    return float((quantized(x) - network(x)).square().sum() / network(x).var(0).sum() / len(x))


def test_new_images_gain(network: nn.Module) -> None:
    """With fewer images than inputs the fit to them means little for others."""
    few, new = images(70, 5), images(2000, 6)
    arguments = {"weights": 3, "activations": 4, "policy": "all"}
    free = bitsplit.quantize(network, few, bitsplit.BitSplit(ridge=0), **arguments)
    auto = bitsplit.quantize(network, few, bitsplit.BitSplit(), **arguments)
    assert error(auto, network, new) < 0.8 * error(free, network, new)


@pytest.mark.parametrize("batch", [1, 3, 16, 70])
def test_the_halves_are_of_the_images_whatever_the_batches(network: nn.Module, batch: int) -> None:
    seen: list[tuple[Statistics, ...]] = []

    class Look(WeightMethod):
        name = "look"
        activations: MinMaxActivations = MinMaxActivations()

        def fit_weights(self, task) -> None:
            seen.append((*task.halves("quantized"), task.statistics("quantized")))
            bitsplit.MinMax().fit_weights(task)

    few = images(70, 5)
    bitsplit.quantize(network, few.split(batch), Look(), weights=8, policy="all")
    assert len(seen) == 3
    for one, other, whole in seen:
        assert (one.count, other.count) == (35, 35)
        together = one + other
        for field in ("gram", "cross", "sum_x", "sum_y", "sum_yy", "count"):
            found, wanted = (torch.as_tensor(getattr(sums, field)).double() for sums in (together, whole))
            torch.testing.assert_close(found, wanted, rtol=3e-4, atol=1e-3)  # products are float32
    first = seen[0][0]
    rows = torch.cat(
        [half.chunk(2)[i % 2] if len(half) > 1 else half[i % 2 :] for i, half in enumerate(few.split(batch))]
    )
    torch.testing.assert_close(first.sum_x[0], rows.double().sum(0), rtol=1e-5, atol=1e-5)


def test_float_inputs_have_halves_too(network: nn.Module) -> None:
    few, new = images(70, 5), images(2000, 6)
    arguments = {"weights": 3, "policy": "all"}
    free, auto = (
        bitsplit.quantize(network, few, bitsplit.BitSplit(error_compensation=False, **options), **arguments)
        for options in ({"ridge": 0}, {})
    )
    assert error(auto, network, new) < error(free, network, new)


def test_a_single_image_is_fitted_freely(network: nn.Module) -> None:
    single = images(1, 5)
    results = [
        bitsplit.quantize(network, single, bitsplit.BitSplit(ridge=ridge), weights=4, policy="all")
        for ridge in ("auto", 0)
    ]
    assert torch.equal(results[0](single), results[1](single))


def test_a_strong_ridge_is_rounding_to_the_float_weights(network: nn.Module) -> None:
    x = images(200, 5)
    held_fast = bitsplit.quantize(network, x, bitsplit.BitSplit(ridge=1e6), weights=4, policy="all")
    for name, stored in bitsplit.codes(held_fast).items():
        weight = network.get_submodule(name).weight
        scale = stored.scale.view(-1, 1)
        nearest = (weight / scale).round().clamp(-7, 7)
        assert (nearest == stored.codes).double().mean() > 0.99


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ridge": -0.1}, "ridge"),
        ({"ridge": float("inf")}, "ridge"),
        ({"ridge": float("nan")}, "ridge"),
        ({"ridge": "some"}, "ridge"),
        ({"paper": True, "ridge": 0.1}, "paper=True fixes ridge"),
    ],
)
def test_impossible_ridges(options: dict, words: str) -> None:
    with pytest.raises((BitsplitError, ValueError), match=words):
        bitsplit.BitSplit(**options)
