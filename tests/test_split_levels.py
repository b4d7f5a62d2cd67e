"""polish, search and feedback with levels of their own for every row; symmetric ones are in test_split.py."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import reference_split as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from split_layers import Layer
from torch import Tensor

from bitsplit.ops.levels import level_choices, levels_of
from bitsplit.ops.split import feedback, fwa, objective, polish, search
from bitsplit.ops.starts import damped, feedback_factor, response_target, solve_starts

NEAR_TIE = 1e-9  # float64: a decision this near a tie may go either way, and all after it with it
TWO_BITS = [(-2, 1), (-1, 2), (-1, 1)]


def mixed(scale: Tensor, choices: list[tuple[int, int]]) -> Tensor:
    """Levels [g, R, 2]: the choices in turn, row after row."""
    groups, rows = scale.shape
    return torch.tensor(choices, dtype=torch.int8)[torch.arange(groups * rows) % len(choices)].view(
        groups, rows, 2
    )


def assert_inside(codes: Tensor, levels: Tensor) -> None:
    assert (codes >= levels[:, :, :1]).all() and (codes <= levels[:, :, 1:]).all()


# ---- Choices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "affine", "choices"),
    [
        (2, False, [(-1, 1)]),
        (2, True, [(-2, 1), (-1, 2)]),
        (4, False, [(-7, 7)]),
        (4, True, [(-8, 7), (-7, 8)]),
        (8, False, [(-127, 127)]),
        (8, True, [(-128, 127)]),  # 128 is no int8
    ],
)
def test_choices(bits: int, affine: bool, choices: list[tuple[int, int]]) -> None:
    assert level_choices(bits, affine) == choices


def test_levels_are_laid_out_as_starts_are_stacked() -> None:
    levels = levels_of([(-2, 1), (-1, 2)], torch.ones(2, 4))
    assert levels.dtype == torch.int8
    assert levels.tolist() == [[[-2, 1], [-2, 1], [-1, 2], [-1, 2]]] * 2
    for choices, message in [([], "3 rows cannot be cut into 0"), (TWO_BITS[:2], "3 rows .* into 2 equal")]:
        with pytest.raises(ValueError, match=message):
            levels_of(choices, torch.ones(1, 3))


# ---- By hand ---------------------------------------------------------------------------------------------


def test_feedback_by_hand() -> None:
    """With independent inputs every weight goes to the nearest level of its own row."""
    target = torch.tensor([[[-1.6, 1.6, 0.4]]]).expand(-1, 3, -1)
    scale = torch.ones(1, 3, dtype=torch.float64)
    codes, loss = feedback(target, scale, torch.eye(3)[None], mixed(scale, TWO_BITS))
    assert codes.tolist() == [[[-2, 1, 0], [-1, 2, 0], [-1, 1, 0]]]
    torch.testing.assert_close(loss, torch.tensor([[0.68, 0.68, 0.88]], dtype=torch.float64))


def test_polish_by_hand() -> None:
    """From (-1, 1, 1) for the weights (-2.2, 1, 1): s = 4.2 / 3 = 1.4 puts the first one at -1.57.

    With -2 among the levels it goes there, then s = 6.4 / 6; without, nothing moves.
    """
    weight = torch.tensor([[[-2.2, 1.0, 1.0]]], dtype=torch.float64).expand(-1, 2, -1)
    codes, scale = torch.tensor([[[-1, 1, 1]] * 2], dtype=torch.int8), torch.ones(1, 2, dtype=torch.float64)
    found = polish(codes, scale, torch.eye(3)[None].double(), weight.mT, mixed(scale, TWO_BITS))
    assert found.codes.tolist() == [[[-2, 1, 1], [-1, 1, 1]]]
    torch.testing.assert_close(found.scale, torch.tensor([[6.4 / 6, 1.4]], dtype=torch.float64))
    assert found.levels.tolist() == [[[-2, 1], [-1, 2]]]


# ---- Reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [TWO_BITS, [(-8, 7), (-7, 8), (0, 3), (-5, 0)], [(-128, 127)]])
@pytest.mark.parametrize("fit_scale", [True, False])
def test_descent_and_feedback_are_the_reference(choices: list[tuple[int, int]], fit_scale: bool) -> None:
    layer = Layer(rows=4, columns=70, patches=140, mix=1.0)
    _, scale = fwa(layer.weight, 2 if choices is TWO_BITS else 4)
    levels, gram = mixed(scale, choices), damped(layer.gram, 0.02)[0].numpy()
    codes, loss = feedback(layer.weight, scale, feedback_factor(layer.gram, 0.02), levels)
    error = layer.weight - scale[:, :, None] * codes
    torch.testing.assert_close(loss, (error @ damped(layer.gram, 0.02) * error).sum(2))
    found = polish(codes, scale, *layer.moments(), levels, fit_scale=fit_scale)
    torch.testing.assert_close(layer.energy - found.explained, layer.objective(found.codes, found.scale))
    clear, x = 0, layer.x[0].numpy()
    for row, (low, high) in enumerate(levels[0].tolist()):
        w, s, ties = layer.weight[0, row].numpy(), scale[0, row].item(), reference.Ties()
        rounded = reference.feedback(w, s, gram, (low, high), ties)
        y = layer.y[0, row].numpy()
        q, best, rounds = reference.polish(rounded, s, x, y, (low, high), 100, ties, fit_scale)
        if ties.nearest < NEAR_TIE:
            continue
        clear += 1
        np.testing.assert_array_equal(codes[0, row], rounded)
        np.testing.assert_array_equal(found.codes[0, row], q)
        np.testing.assert_allclose(found.scale[0, row], best, rtol=1e-10)
        assert found.rounds[0, row] == rounds
    assert clear >= 3


@pytest.mark.parametrize("choices", [TWO_BITS, [(-8, 7), (-7, 8), (0, 15)]])
@pytest.mark.parametrize("fit_scale", [True, False])
def test_search_is_the_reference(choices: list[tuple[int, int]], fit_scale: bool) -> None:
    """On whole-numbered moments, where the operator's running sums are exact."""
    layer = Layer(groups=2, rows=3, columns=40, patches=140)
    layer.x, layer.weight = (3 * layer.x).round(), (50 * layer.weight).round()
    layer.measure()
    codes, scale = fwa(layer.weight, 2 if choices is TWO_BITS else 4)
    levels = mixed(scale, choices)
    codes = codes.maximum(levels[:, :, :1])
    found = search(codes, scale, *layer.moments(), levels, 130, 11, fit_scale)
    assert_inside(found.codes, levels)
    for g in range(2):
        for row in range(3):
            moments = layer.gram[g].numpy(), layer.cross[g, :, row].numpy() / scale[g, row].item()
            start = codes[g, row].numpy().astype(int)
            limits = levels[g, row].tolist()
            q, explained = reference.search(start, *moments, limits, 130, 11, 3 * g + row, fit_scale)
            np.testing.assert_array_equal(found.codes[g, row].numpy(), q)
            np.testing.assert_allclose(found.explained[g, row], explained * scale[g, row] ** 2, rtol=1e-9)
    assert (found.codes.amin(2) == levels[:, :, 0]).any() and (found.codes.amax(2) == levels[:, :, 1]).any()


# ---- Properties ------------------------------------------------------------------------------------------


@settings(max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    pairs=st.lists(
        st.tuples(st.integers(-9, 0), st.integers(0, 9)).filter(lambda pair: pair != (0, 0)), min_size=1
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    fit_scale=st.booleans(),
)
def test_the_objective_never_rises_and_codes_stay_inside(
    seed, rows, columns, pairs, dtype, fit_scale
) -> None:
    torch.manual_seed(seed)
    layer = Layer(2, rows, columns, patches=columns + 10, mix=0.7)
    weight, moments = layer.weight.to(dtype), layer.moments(dtype)
    slack = (1e-12 if dtype == torch.float64 else 1e-5) * layer.energy
    _, scale = fwa(weight, 4)
    levels = mixed(scale, pairs)
    codes, _ = feedback(weight, scale, feedback_factor(layer.gram), levels)
    assert_inside(codes, levels)
    error = layer.objective(codes, scale)
    for solver in (partial(polish, rounds=30), partial(search, steps=60), partial(polish, rounds=30)):
        found = solver(codes, scale, *moments, levels, fit_scale=fit_scale)
        assert fit_scale or torch.equal(found.scale, scale)
        codes, scale = found.codes, found.scale
        after = layer.objective(codes, scale)
        assert (after <= error + slack).all()
        assert_inside(codes, levels)
        assert (scale > 0).all()
        error = after


def test_more_levels_explain_more() -> None:
    layer = Layer(rows=32, columns=60, patches=200, mix=1.0)
    factor = feedback_factor(layer.gram)
    _, scale = fwa(layer.weight, 2)
    scales = scale[:, None] * torch.tensor([0.6, 0.8, 1.0], dtype=torch.float64)[:, None]
    errors = []
    for affine in (False, True):
        found = solve_starts(layer.weight, scales, *layer.moments(), factor, level_choices(2, affine))
        errors.append(layer.objective(found.codes, found.scale).sum())
    assert errors[1] < 0.75 * errors[0]


def test_every_channel_takes_the_better_choice() -> None:
    """One scale and two choices are two starts, both of which are polished."""
    layer = Layer(groups=2, rows=16, columns=40, mix=1.0)
    factor = feedback_factor(layer.gram)
    target = response_target(layer.weight, *layer.moments(), factor)
    scales = 0.8 * fwa(layer.weight, 2)[1][:, None]
    choices = level_choices(2, affine=True)
    best = solve_starts(target, scales, *layer.moments(), factor, choices)
    alone = [solve_starts(target, scales, *layer.moments(), factor, [choice]) for choice in choices]
    torch.testing.assert_close(best.explained, torch.stack([one.explained for one in alone]).amax(0))
    chosen = (best.levels[:, :, 1] == 2).long()
    assert set(chosen.flatten().tolist()) == {0, 1}
    for number, one in enumerate(alone):
        assert torch.equal(best.codes[chosen == number], one.codes[chosen == number])
    assert_inside(best.codes, best.levels)


def test_threads_and_neighbours_change_no_bit() -> None:
    layer = Layer(groups=2, rows=37, columns=130, patches=300, mix=1.0)
    factor, moments = feedback_factor(layer.gram), layer.moments(torch.float32)
    _, scale = fwa(layer.weight, 2)
    levels, results = mixed(scale, TWO_BITS), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        codes, loss = feedback(layer.weight, scale, factor, levels)
        polished = polish(codes, scale, *moments, levels)
        results.append((codes, loss, *polished, *search(codes, scale, *moments, levels, 60)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for choice in TWO_BITS:  # all rows with the levels of some: these stay as they are
        uniform = levels_of([choice], scale)
        same = (levels == uniform).all(2)
        codes, _ = feedback(layer.weight, scale, factor, uniform)
        assert torch.equal(codes[same], results[0][0][same])
        assert torch.equal(polish(codes, scale, *moments, uniform).codes[same], polished.codes[same])


def test_the_objective_takes_every_int8() -> None:
    codes, one = torch.tensor([[[-128]]], dtype=torch.int8), torch.ones(1, 1, 1)
    scale, energy = torch.full((1, 1), 0.5, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert objective(codes, scale, one, one, energy) == 1 + 128 + 64**2


# ---- Mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (torch.tensor([[[-1, 1]] * 3]), "levels must be int8"),
        (torch.tensor([[[-1, 1]] * 2], dtype=torch.int8), r"levels must have shape \[1, 3, 2\]"),
        (torch.tensor([[[-1, 1]] * 2 + [[0, 0]]], dtype=torch.int8), "lowest < highest"),
        (torch.tensor([[[-1, 1]] * 2 + [[1, 2]]], dtype=torch.int8), "lowest <= 0 <= highest"),
        (torch.tensor([[[-1, 1]] * 2 + [[-2, -1]]], dtype=torch.int8), "lowest <= 0 <= highest"),
    ],
)
def test_levels_are_checked(levels: Tensor, message: str) -> None:
    layer = Layer(rows=3, columns=10)
    codes, scale = fwa(layer.weight, 2)
    for solver in (polish, partial(search, steps=5)):
        with pytest.raises(RuntimeError, match=message):
            solver(codes, scale, *layer.moments(), levels)
    with pytest.raises(RuntimeError, match=message):
        feedback(layer.weight, scale, feedback_factor(layer.gram), levels)


def test_codes_beyond_the_levels_of_their_row_are_named() -> None:
    layer = Layer(groups=2, rows=3, columns=10)
    _, scale = fwa(layer.weight, 2)
    codes = torch.zeros(2, 3, 10, dtype=torch.int8)
    codes[1, 2, 4] = 2
    message = r"row 2 of group 1 has the levels -2\.\.1 and codes 0\.\.2"
    for solver in (polish, partial(search, steps=5)):
        solver(codes, scale, *layer.moments(), levels_of([(-1, 2)], scale))
        with pytest.raises(RuntimeError, match=message):
            solver(codes, scale, *layer.moments(), levels_of([(-2, 1)], scale))


# ---- CUDA ------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("choices", [TWO_BITS, [(-8, 7), (-7, 8)], [(-128, 127)]])
def test_cuda_follows_the_cpu(choices: list[tuple[int, int]]) -> None:
    layer = Layer(groups=2, rows=37, columns=130, patches=300, mix=1.0)
    _, scale = fwa(layer.weight, 2 if choices is TWO_BITS else 4)
    levels, factor = mixed(scale, choices), feedback_factor(layer.gram)
    codes, _ = feedback(layer.weight, scale, factor, levels)
    on_gpu, _ = feedback(layer.weight.cuda(), scale.cuda(), factor.cuda(), levels.cuda())
    assert (on_gpu.cpu() == codes).all(2).double().mean() > 0.95  # a row that met a tie may differ
    for solver in (polish, partial(search, steps=200), partial(search, steps=200, fit_scale=False)):
        cpu = solver(codes, scale, *layer.moments(), levels)
        gpu = solver(codes.cuda(), scale.cuda(), layer.gram.cuda(), layer.cross.cuda(), levels.cuda())
        assert_inside(gpu.codes.cpu(), levels)
        same = (gpu.codes.cpu() == cpu.codes).all(2)
        assert same.double().mean() > 0.95
        torch.testing.assert_close(gpu.explained.cpu()[same], cpu.explained[same], rtol=1e-9, atol=0)
