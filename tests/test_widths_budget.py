"""Budgets of mixed precision: what widths cost, and what cannot be met is told first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from widths_cases import NAMES, WIDTHS, measured

import bitsplit
from bitsplit.errors import RecipeError
from bitsplit.preparing import Prepared


@pytest.fixture
def found(model: nn.Module, images: Tensor) -> bitsplit.Sensitivities:
    return measured(model, images)


def test_bytes_are_those_of_the_plan(model, images, found):
    for bits in (2, 4, 8):
        everywhere = bitsplit.plan(model, images, "minmax", weights=bits, policy="all").quantized_bytes
        chosen = found.choose(bytes=everywhere)
        plan = bitsplit.plan(model, images, chosen.recipe)
        assert plan.quantized_bytes == chosen.cost <= chosen.limit == everywhere
        assert {row.name: row.weights for row in plan.layers} == chosen.widths
        assert chosen.loss <= found.uniform(bits).loss
        assert found.choose(bits=bits).widths == chosen.widths
        assert found.uniform(bits).widths == dict.fromkeys(chosen.widths, bits)


def test_bit_operations(model, images):
    found = bitsplit.sensitivities(model, images, "minmax", activations=4, widths=WIDTHS)
    # the papers' rule: stem and classifier have 8 bits, the stem's input is float, the classifier's has 8
    assert [row.layer.name for row in found.layers] == NAMES[1:-1]
    stem, fc = 3 * 8 * 9 * 64, 8 * 5
    block = 8 * 8 * 9 * 64
    assert found.other_operations == stem * 8 * 32 + fc * 8 * 8
    limit = found.other_operations + 4 * block * 4 * 4
    chosen = found.choose(operations=limit)
    assert chosen.cost <= chosen.limit == limit
    assert chosen.cost == found.other_operations + sum(block * bits * 4 for bits in chosen.widths.values())
    with pytest.raises(RecipeError, match=f"a budget of {stem:,} bit operations cannot be met"):
        found.choose(operations=stem)


def test_milliseconds_from_a_table(found, tmp_path: Path):
    names = [row.layer.name for row in found.layers]
    table = tmp_path / "times.csv"
    lines = [f"{name},{bits},{bits * (index + 1)}" for index, name in enumerate(names) for bits in WIDTHS]
    table.write_text("\n".join(["layer,width,milliseconds", *lines, ""]))
    chosen = found.choose(milliseconds=80, times=table)
    assert chosen.cost == sum(chosen.widths[name] * (i + 1) for i, name in enumerate(names)) <= 80
    table.write_text("\n".join(["layer,width,milliseconds", *lines[1:], ""]))
    with pytest.raises(RecipeError, match=f"has no time for {names[0]} at 2 bits"):
        found.choose(milliseconds=80, times=table)
    table.write_text("layer,width,milliseconds\nstem,two,3\n")
    with pytest.raises(RecipeError, match=r"times.csv, line 2: needs layer, width, milliseconds"):
        found.choose(milliseconds=80, times=table)
    with pytest.raises(RecipeError, match="cannot read"):
        found.choose(milliseconds=80, times=tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("stem,2,nan", "line 2: a time is 0 or more milliseconds, got nan"),
        ("stem,2,-1", "line 2: a time is 0 or more milliseconds, got -1"),
        ("stem,2,1\nstem,4,1\nstem,2,3", "line 4: stem at 2 bits stands there twice"),
        ("", "has no times"),
    ],
)
def test_tables_of_times_that_are_none(tmp_path: Path, lines: str, message: str):
    table = tmp_path / "times.csv"
    table.write_text(f"\N{ZERO WIDTH NO-BREAK SPACE}layer,width,milliseconds\n{lines}\n", encoding="utf-8")
    with pytest.raises((RecipeError, ValueError), match=message):
        bitsplit.Budget(milliseconds=8, times=table)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "a budget is one of bits, bytes, operations, milliseconds, got none"),
        ({"bits": 3, "bytes": 5}, "got bits and bytes"),
        ({"milliseconds": 3}, "belong together"),
        ({"bits": 3, "times": "a.csv"}, "belong together"),
        ({"bits": -1}, "greater than 0"),
        ({"bits": 1.5}, "a budget of .* cannot be met"),
        ({"bytes": 10}, "a budget of 10 bytes cannot be met: the network takes .* at least"),
        ({"size": 10}, "unknown field 'size'"),
    ],
)
def test_budgets_that_are_none(found, limits, message):
    with pytest.raises(RecipeError, match=message):
        found.choose(**limits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "got none"),
        ({"milliseconds": 1, "times": "none.csv"}, "cannot read none.csv"),
        ({"bits": 3, "solver": "best"}, "solver is one of exact, genetic"),
        ({"bits": 3, "images": 0}, "1 image or more, got images=0"),
    ],
)
def test_what_cannot_be_met_is_told_before_anything_is_measured(model, arguments, message):
    def broken(*_):
        raise AssertionError("the network ran")

    with pytest.raises(RecipeError, match=message):
        bitsplit.mixed(model, [torch.zeros(1, 3, 8, 8)], "minmax", step=broken, **arguments)


@pytest.mark.parametrize("limits", [{"bits": 1}, {"bytes": 10}, {"milliseconds": 4, "times": "times.csv"}])
def test_a_budget_that_cannot_be_met_is_told_before_anything_is_measured(
    model, images, monkeypatch, tmp_path, limits
):
    def measuring(*_, **__):
        raise AssertionError("something was measured")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "times.csv").write_text("layer,width,milliseconds\nstem,2,1\n")
    monkeypatch.setattr(Prepared, "run", measuring)
    with pytest.raises(RecipeError, match=r"cannot be met|has no time for"):
        bitsplit.mixed(model, images, "minmax", **limits)
