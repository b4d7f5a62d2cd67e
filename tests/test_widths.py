"""Mixed precision: what widths of layers cost the network, and the plan that comes of it."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
from residual_net import same
from torch import Tensor, nn
from widths_cases import NAMES, WIDTHS, measured

import bitsplit
from bitsplit.data import as_batches
from bitsplit.errors import CheckpointError, RecipeError
from bitsplit.methods.registry import resolve
from bitsplit.methods.whole import divergence
from bitsplit.network.running import default_step
from bitsplit.preparing import observed_copy
from bitsplit.widths import trial

CHAIN = ["mse", bitsplit.Brecq(iterations=60, rate=0.1, step_iterations=5)]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(24, 3, 8, 8)


@pytest.fixture
def found(model: nn.Module, images: Tensor) -> bitsplit.Sensitivities:
    return measured(model, images)


@torch.no_grad()
def test_every_loss_is_what_the_network_loses(model, images, found):
    """Weights by range do not depend on data: so all can be put together by hand."""
    _, folded = observed_copy(model, as_batches(images, 16), default_step, None)
    rounded = {
        bits: bitsplit.quantize(model, images, "minmax", weights=bits, policy="all") for bits in WIDTHS
    }

    def loss(widths: dict[str, int]) -> float:
        changed = copy.deepcopy(folded)
        for name, bits in widths.items():
            changed.get_submodule(name).weight.copy_(rounded[bits].get_submodule(name).weight)
        return float(divergence(changed(images), folded(images)))

    done: list[str] = []
    for row in found.layers:
        unit = [other.layer.name for other in found.layers if other.layer.unit == row.layer.unit]
        before = [name for name in done if name not in unit]
        base = dict.fromkeys(before + unit, 8)
        for bits in WIDTHS:
            expected = loss(base | {row.layer.name: bits}) - loss(base)
            assert row.losses[bits] == pytest.approx(expected, rel=1e-3, abs=1e-7)
        done.append(row.layer.name)
    assert done == NAMES and len(found.pairs) == 2
    for pair in found.pairs:
        unit = [row.layer.name for row in found.layers if row.layer.name in (pair.first, pair.second)]
        base = dict.fromkeys(done[: done.index(unit[1]) + 1], 8)
        losses = [loss(base | dict.fromkeys(some, 2)) - loss(base) for some in (unit, unit[:1], unit[1:])]
        assert pair.loss == pytest.approx(losses[0] - losses[1] - losses[2], rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("activations", [None, 4])
@pytest.mark.parametrize("method", ["mse", "bitsplit", bitsplit.BitSplit(levels="affine")])
def test_the_last_layer_is_fitted_as_quantize_fits_it(model, images, method, activations):
    options = {"policy": "all", "activations": activations, "batch_size": 16}
    row = bitsplit.sensitivities(model, images, method, widths=WIDTHS, **options).layers[-1]
    wide = bitsplit.quantize(model, images, method, weights=8, **options)
    for bits in WIDTHS[:-1]:
        override = {row.layer.name: {"weights": bits}}
        changed = bitsplit.quantize(model, images, method, weights=8, layers=override, **options)
        with torch.no_grad():
            losses = [float(divergence(one(images), model(images))) for one in (changed, wide)]
        assert row.losses[bits] == pytest.approx(losses[0] - losses[1], rel=1e-3, abs=1e-6)


def test_methods_that_learn_learn_at_every_width(model, images):
    options = {"policy": "all", "activations": 4, "widths": WIDTHS}
    learned = bitsplit.sensitivities(model, images, CHAIN, **options)
    fitted = bitsplit.sensitivities(model, images, CHAIN[0], **options)
    for bits in (2, 4):
        losses = [[row.losses[bits] for row in some.layers] for some in (learned, fitted)]
        assert sum(a != b for a, b in zip(*losses, strict=True)) >= 4  # the others kept their start


@pytest.mark.parametrize(
    "chain",
    [
        ["adaround"], ["flexround"], [bitsplit.Brecq(unit="net")], ["equalize", "mse"],
        ["bitsplit", "global"], ["minmax", "bias_correction"],
    ],
)  # fmt: skip
def test_every_kind_of_chain(model, images, chain):
    quick = {"iterations": 3, "step_iterations": 3}
    methods = [
        method.model_copy(update={k: v for k, v in quick.items() if k in type(method).model_fields})
        for method in resolve(chain)
    ]
    found = bitsplit.sensitivities(model, images, methods, activations=4, widths=(2, 8), policy="all")
    losses = [row.losses[2] for row in found.layers]
    assert all(math.isfinite(loss) for loss in losses) and sum(losses) > 0


def test_a_stopped_run_goes_on(model, images, found, tmp_path, monkeypatch):
    options = {"policy": "all", "widths": WIDTHS, "batch_size": 16, "checkpoint": tmp_path}
    asked = itertools.count()
    real = trial.divergence

    def counted(*args) -> Tensor:
        if next(asked) == 12:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(trial, "divergence", counted)
    with pytest.raises(KeyboardInterrupt):
        bitsplit.sensitivities(model, images, "minmax", **options)
    assert bitsplit.sensitivities(model, images, "minmax", **options) == found
    before = next(asked)
    assert bitsplit.sensitivities(model, images, "minmax", **options) == found
    assert next(asked) == before + 1
    with pytest.raises(CheckpointError, match="tried: saved"):
        bitsplit.sensitivities(model, images, "minmax", **options | {"widths": (2, 8)})


def test_one_call(model, images, found, tmp_path: Path):
    options = {"policy": "all", "widths": WIDTHS, "batch_size": 16}
    chosen = bitsplit.mixed(model, images, "minmax", bits=3.5, **options)
    assert chosen == found.choose(bits=3.5)
    counts = {row.layer.name: row.layer.count for row in found.layers}
    mean = sum(counts[name] * bits for name, bits in chosen.widths.items()) / sum(counts.values())
    assert mean == pytest.approx(chosen.cost) and mean <= 3.5
    chosen.to_yaml(tmp_path / "mixed.yaml")
    again = bitsplit.MixedPlan.from_yaml(tmp_path / "mixed.yaml")
    assert again == chosen
    quantized = bitsplit.quantize(model, images, again.recipe, batch_size=16)
    assert {name: codes.bits for name, codes in bitsplit.codes(quantized).items()} == chosen.widths
    beside = bitsplit.quantize(
        model, images, "minmax", weights=8, layers=again.layers, policy="all", batch_size=16
    )
    assert same(quantized, beside)


def test_the_exact_choice_is_never_worse(found):
    for bits in (2, 2.5, 3, 4, 6):
        best, searched = (found.choose(bits=bits, solver=name) for name in ("exact", "genetic"))
        assert best.loss <= searched.loss + 1e-12
        assert best.bound <= best.loss + 1e-9 and searched.bound is None
        assert searched.cost <= bits + 1e-9


def test_sensitivities_are_files(found, tmp_path: Path):
    found.to_json(tmp_path / "found.json")
    assert bitsplit.Sensitivities.from_json(tmp_path / "found.json") == found
    assert bitsplit.Sensitivities.from_yaml(found.to_yaml()) == found


def test_what_a_policy_or_an_override_fixes_is_not_tried(model, images):
    found = bitsplit.sensitivities(model, images, "minmax", widths=WIDTHS, layers={"first.*": {"weights": 4}})
    assert [row.layer.name for row in found.layers] == ["second.one", "second.two"]
    plan = bitsplit.plan(model, images, found.choose(bits=2).recipe)
    assert [row.weights for row in plan.layers] == [8, 4, 4, 2, 2, 8]
    with pytest.raises(RecipeError, match="no layer has a choice"):
        bitsplit.sensitivities(model, images, "minmax", layers={"*": {"weights": 4}})


def test_inputs_that_are_fitted_at_the_end_cannot_be_measured(model, images):
    method = bitsplit.BitSplit(paper=True)
    with pytest.raises(RecipeError, match="bitsplit fits inputs when all layers are finished"):
        bitsplit.sensitivities(model, images, method, activations=4)
    assert bitsplit.sensitivities(model, images, method, widths=(2, 8)).layers


def test_values_are_no_scores_of_classes(model, images):
    """A constant beside all of them is an error, of scores it is none."""
    got, wanted = torch.randn(5, 3) + 100, torch.randn(5, 3)
    assert divergence(wanted + 100, wanted) < 1e-4 < divergence(wanted + 100, wanted, "values")
    assert divergence(got, wanted, "values") == divergence((got,), (wanted,))
    scores, values = (
        bitsplit.sensitivities(model, images, "minmax", widths=(2, 8), policy="all", outputs=outputs)
        for outputs in ("classes", "values")
    )
    assert scores.layers[0].losses != values.layers[0].losses


def test_tiny_losses_are_no_noise(model, images):
    """Divergences of 1e-9 are differences of numbers near 1."""
    with torch.no_grad():
        model.fc.weight.mul_(1e-3)
        model.fc.bias.zero_()
    found = bitsplit.sensitivities(model, images, "minmax", widths=(2, 4, 8), policy="all")
    for row in found.layers:
        assert row.losses[2] > row.losses[4] > -1e-12


def test_inputs_keep_the_bits_they_were_measured_with(model, images):
    """Also where an override names the layer, and a later one overrides that."""
    overrides = {
        "first.one": {"activations": 8},
        "first.two": {"activations": None},
        "second.*": {"activations": 5},
    }
    options = {"activations": 4, "policy": "all"}
    asked = bitsplit.plan(model, images, "minmax", layers=overrides, **options)
    chosen = bitsplit.mixed(model, images, "minmax", bits=4, layers=overrides, widths=WIDTHS, **options)
    got = bitsplit.plan(model, images, chosen.recipe)
    assert [row.activations for row in got.layers] == [row.activations for row in asked.layers]
    assert {row.name: row.weights for row in got.layers} == chosen.widths


def test_a_layer_without_a_choice_is_the_same_in_every_trial(model, images):
    """Learning changes it with the others of its unit."""
    overrides = {"first.two": {"weights": 3}}
    few, many = (
        bitsplit.sensitivities(model, images, CHAIN, widths=widths, policy="all", layers=overrides)
        for widths in ((2, 8), (2, 3, 4, 8))
    )
    for one, other in zip(few.layers, many.layers, strict=True):
        assert one.losses[2] == other.losses[2]


def test_mistakes(model, images, found):
    with pytest.raises(RecipeError, match="solver is one of exact, genetic, got 'best'"):
        found.choose(bits=3, solver="best")
    with pytest.raises(RecipeError, match="3 bits were not tried; 2, 4, 8 were"):
        found.uniform(3)
    for widths in ([4], [1, 4], [4, 9], [2.5, 4]):
        with pytest.raises(RecipeError, match="widths must be two or more numbers from 2 to 8"):
            bitsplit.sensitivities(model, images, "minmax", widths=widths)
