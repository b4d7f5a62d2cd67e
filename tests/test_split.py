"""The split solvers against reference_split.py: integers, scales, rounds, objectives, starts."""

from __future__ import annotations

import numpy as np
import pytest
import reference_split as reference
import torch
from split_layers import Layer, feedback, polish, search
from torch import Tensor

from bitsplit.ops.levels import level_choices
from bitsplit.ops.split import fwa, ofwa, planes
from bitsplit.ops.starts import best_of, damped, feedback_factor, response_target, solve_starts

NEAR_TIE = 1e-9  # float64: a decision this near a tie may go either way, and all after it with it


def assert_follows(codes: Tensor, scale: Tensor, expected: list, ties: list) -> None:
    """Same integers and scales as the reference in every row that met no tie on its way; most meet none."""
    clear = 0
    for row, (q, s, *_) in enumerate(expected):
        if ties[row].nearest < NEAR_TIE:
            continue
        clear += 1
        np.testing.assert_array_equal(codes[row].numpy(), q)
        np.testing.assert_allclose(scale[row], s, rtol=1e-10)
    assert clear >= len(expected) - 1


bits_and_correlation = pytest.mark.parametrize(
    ("bits", "mix"), [(bits, mix) for bits in (2, 3, 4, 8) for mix in (0.0, 1.0)]
)


@pytest.mark.parametrize("bits", range(2, 9))
def test_weight_space_is_the_reference(bits: int) -> None:
    weight = torch.randn(1, 6, 50, dtype=torch.float64)
    weight[0, 2] = 0
    codes, scale = fwa(weight, bits)
    better, better_scale = ofwa(weight, codes, scale, bits)
    worse = codes // 2
    repaired, repaired_scale = ofwa(weight, worse, scale, bits, rounds=3)
    for row, w in enumerate(weight[0].numpy()):
        q, s = reference.fwa(w, bits)
        np.testing.assert_array_equal(codes[0, row], q)
        np.testing.assert_allclose(scale[0, row], s, rtol=1e-12)
        q2, s2 = reference.ofwa(w, q, s, bits, 50)
        np.testing.assert_array_equal(better[0, row], q2)
        np.testing.assert_allclose(better_scale[0, row], s2, rtol=1e-12)
        q3, s3 = reference.ofwa(w, worse[0, row].numpy().astype(int), s, bits, 3)
        np.testing.assert_array_equal(repaired[0, row], q3)
        np.testing.assert_allclose(repaired_scale[0, row], s3, rtol=1e-12)


def slow_polish(q, s, x, y, bits: int, rounds: int, ties: reference.Ties) -> tuple[np.ndarray, float, int]:
    return reference.polish(q, s, x, y, *level_choices(bits), rounds, ties)


@bits_and_correlation
@pytest.mark.parametrize(("solver", "slow"), [(planes, reference.planes), (polish, slow_polish)])
def test_descent_is_the_reference(solver, slow, bits: int, mix: float) -> None:
    layer = Layer(rows=4, columns=70, patches=140, mix=mix)  # 70: more than one block of 64
    layer.x[0, 5] = 0  # an input that is never active
    layer.measure()
    codes, scale = fwa(layer.weight, bits)
    result = solver(codes, scale, *layer.moments(), bits)
    ties = [reference.Ties() for _ in range(4)]
    x, y = layer.x[0].numpy(), layer.y[0].numpy()
    starts = [(codes[0, row].numpy().astype(int), scale[0, row].item(), x, y[row]) for row in range(4)]
    expected = [slow(*start, bits, 100, tie) for start, tie in zip(starts, ties, strict=True)]
    assert_follows(result.codes[0], result.scale[0], expected, ties)
    assert result.rounds[0].tolist() == [used for *_, used in expected]
    assert bits == 2 or not torch.equal(result.codes, codes)
    torch.testing.assert_close(result.codes[0, :, 5], codes[0, :, 5])


@bits_and_correlation
def test_feedback_is_the_reference(bits: int, mix: float) -> None:
    layer = Layer(rows=4, columns=70, patches=140, mix=mix)
    _, scale = fwa(layer.weight, bits)
    codes, loss = feedback(layer.weight, scale, feedback_factor(layer.gram, 0.02), bits)
    error = layer.weight - scale[:, :, None] * codes
    torch.testing.assert_close(loss, (error @ damped(layer.gram, 0.02) * error).sum(2))
    gram, ties = damped(layer.gram, 0.02)[0].numpy(), [reference.Ties() for _ in range(4)]
    expected = [
        (reference.feedback(w, s.item(), gram, *level_choices(bits), tie), s.item())
        for w, s, tie in zip(layer.weight[0].numpy(), scale[0], ties, strict=True)
    ]
    assert_follows(codes[0], scale[0], expected, ties)


@pytest.mark.parametrize(("bits", "columns"), [(2, 70), (3, 9), (4, 70), (8, 20)])
def test_search_is_the_reference(bits: int, columns: int) -> None:
    """On whole-numbered moments, where the operator's running sums are exact."""
    torch.manual_seed(columns + bits)
    layer = Layer(groups=2, rows=4, columns=columns, patches=140)
    layer.x = (3 * layer.x).round()
    layer.weight = (50 * layer.weight).round()
    layer.x[0, 5] = 0  # an input that is never active
    layer.measure()
    codes, scale = fwa(layer.weight, bits)
    result = search(codes, scale, *layer.moments(), bits, steps=130, seed=11)
    for g in range(2):
        for row in range(4):
            moments = layer.gram[g].numpy(), layer.cross[g, :, row].numpy() / scale[g, row].item()
            start = codes[g, row].numpy().astype(int)
            q, explained = reference.search(start, *moments, *level_choices(bits), 130, 11, 4 * g + row)
            np.testing.assert_array_equal(result.codes[g, row].numpy(), q)
            np.testing.assert_allclose(result.explained[g, row], explained * scale[g, row] ** 2, rtol=1e-9)
            assert columns < 70 or (q != start).any()
    torch.testing.assert_close(
        layer.energy - layer.objective(result.codes, result.scale), result.explained, rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_search_leaves_fixed_points_for_better_ones(dtype: torch.dtype) -> None:
    layer = Layer(rows=16, columns=100, patches=200, mix=1.0)
    moments = layer.moments(dtype)
    fixed = polish(*fwa(layer.weight, 3), *moments, 3)
    assert torch.equal(search(fixed.codes, fixed.scale, *moments, 3, 0).codes, fixed.codes)
    before = layer.objective(fixed.codes, fixed.scale)
    for steps in (100, 1000):
        found = search(fixed.codes, fixed.scale, *moments, 3, steps)
        after = layer.objective(found.codes, found.scale)
        assert (after <= before * (1 + 1e-6)).all()
        assert (after < 0.99 * before).sum() >= 8
        assert found.codes.abs().max() <= 3 and (found.rounds == steps).all()
        torch.testing.assert_close(found.explained, layer.energy - after, rtol=1e-4, atol=0)


def test_reference_feedback_by_hand() -> None:
    """Two equal inputs: what the first weight loses in rounding, the second takes over."""
    gram = np.array([[1.0, 1.0], [1.0, 1.0001]])
    assert reference.feedback(np.array([0.4, 0.4]), 1.0, gram, (-1, 1)).tolist() == [0, 1]
    assert reference.feedback(np.array([0.4, 0.4]), 1.0, np.eye(2), (-1, 1)).tolist() == [0, 0]


def test_objective_is_the_squared_error() -> None:
    layer = Layer(groups=2)
    codes, scale = fwa(layer.weight, 3)
    for result in (planes(codes, scale, *layer.moments(), 3), polish(codes, scale, *layer.moments(), 3)):
        error = layer.y - result.scale[:, :, None] * (result.codes.double() @ layer.x)
        torch.testing.assert_close(layer.objective(result.codes, result.scale), error.square().sum(2))
        torch.testing.assert_close(layer.energy - result.explained, error.square().sum(2))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_objective_never_rises_from_stage_to_stage_nor_from_round_to_round(bits: int) -> None:
    layer = Layer(rows=12, columns=80, patches=200, mix=1.0)
    moments = layer.moments()
    codes, scale = fwa(layer.weight, bits)
    before = layer.objective(codes, scale)
    for solver in (planes, polish):
        for rounds in range(6):
            result = solver(codes, scale, *moments, bits, rounds)
            after = layer.objective(result.codes, result.scale)
            assert (after <= before + 1e-13 * layer.energy).all()
            before = after
        result = solver(codes, scale, *moments, bits, 100)
        before = layer.objective(result.codes, result.scale)
        codes, scale = result.codes, result.scale
        again = solver(codes, scale, *moments, bits, 100)
        if solver is polish:  # the planes of a fixed point need not be those its codes are split into
            assert torch.equal(again.codes, codes)
            assert (again.rounds == 1).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("solver", [planes, polish])
def test_float32_reaches_nearly_the_same_objective(solver, bits: int) -> None:
    layer = Layer(rows=32, columns=150, patches=400, mix=1.0)
    codes, scale = fwa(layer.weight, bits)
    exact = solver(codes, scale, *layer.moments(), bits)
    single = solver(codes, scale, *layer.moments(torch.float32), bits)
    mixed = solver(codes, scale, layer.gram, layer.cross.float(), bits)  # G is converted as it is read
    assert torch.equal(single.codes, mixed.codes)
    ratio = layer.objective(single.codes, single.scale) / layer.objective(exact.codes, exact.scale)
    assert abs(ratio.log().mean()) < 3e-3
    torch.testing.assert_close(
        single.explained, layer.energy - layer.objective(single.codes, single.scale), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_and_two_threads_and_stacked_starts_give_the_same_bits(dtype: torch.dtype) -> None:
    layer = Layer(groups=2, rows=37, columns=130, patches=300, mix=1.0)
    weight, (gram, cross) = layer.weight.to(dtype), layer.moments(dtype)
    factor = feedback_factor(layer.gram)
    results = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        codes, scale = fwa(weight, 4)
        stacked = torch.cat([scale * 0.8, scale], 1)
        rounded, loss = feedback(weight, stacked, factor, 4)
        results.append(
            (
                codes,
                scale,
                rounded,
                loss,
                *polish(rounded, stacked, gram, cross, 4),
                *planes(codes, scale, gram, cross, 4),
                *search(codes, scale, gram, cross, 4, 60),
            )
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    codes, scale, rounded, _, *polished = results[0][:9]
    for start, multiplier in enumerate((0.8, 1.0)):
        rows = slice(start * 37, (start + 1) * 37)
        alone, _ = feedback(weight, scale * multiplier, factor, 4)
        assert torch.equal(alone, rounded[:, rows])
        for stacked, single in zip(polished, polish(alone, scale * multiplier, gram, cross, 4), strict=True):
            assert torch.equal(single, stacked[:, rows])


def test_groups_are_independent_problems() -> None:
    layer = Layer(groups=7, rows=1, columns=9, patches=40)  # depthwise
    codes, scale = fwa(layer.weight, 4)
    together = polish(codes, scale, *layer.moments(), 4)
    for g in range(7):
        cut = slice(g, g + 1)
        alone = polish(codes[cut], scale[cut], layer.gram[cut], layer.cross[cut], 4)
        assert all(torch.equal(a, b[cut]) for a, b in zip(alone, together, strict=True))


def test_starts_keep_the_best_of_every_channel() -> None:
    layer = Layer(groups=2, rows=8, columns=40, mix=1.0)
    factor = feedback_factor(layer.gram)
    target = response_target(layer.weight, *layer.moments(), factor)
    _, scale = fwa(layer.weight, 3)
    multipliers = torch.tensor([0.6, 0.8, 1.0], dtype=torch.float64)
    scales = scale[:, None] * multipliers[:, None]
    best = solve_starts(target, scales, *layer.moments(), factor, [(-3, 3)])
    objectives, losses = [], []
    for s in scales.unbind(1):
        alone = solve_starts(target, s[:, None], *layer.moments(), factor, [(-3, 3)])
        objectives.append(layer.objective(alone.codes, alone.scale))
        losses.append(feedback(target, s, factor, 3)[1])
    promising = torch.stack(losses).argsort(0)[:2]
    each = torch.stack(objectives).gather(0, promising)
    torch.testing.assert_close(layer.objective(best.codes, best.scale), each.amin(0))
    assert len(promising.gather(0, each.argmin(0, keepdim=True)).unique()) > 1  # else nothing was chosen
    torch.testing.assert_close(best.explained, layer.energy - each.amin(0))


def test_best_of_prefers_the_first_of_equals() -> None:
    layer = Layer(rows=3)
    codes, scale = fwa(layer.weight, 3)
    one = polish(codes, scale, *layer.moments(), 3)
    twice = polish(codes.repeat(1, 2, 1), scale.repeat(1, 2), *layer.moments(), 3)
    assert all(torch.equal(a, b) for a, b in zip(one, best_of(twice, 3), strict=True))


def test_target_answers_best() -> None:
    """With responses of other inputs than X, the target beats the weight; with its own, it is the weight."""
    layer = Layer(rows=3, columns=20, patches=200)
    factor = feedback_factor(layer.gram, 1e-9)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor @ factor.mT, damped(layer.gram, 1e-9))
    torch.testing.assert_close(response_target(layer.weight, *layer.moments(), factor), layer.weight)
    seen = layer.x + 0.3 * torch.randn_like(layer.x)
    gram, cross = seen @ seen.mT, seen @ layer.y.mT
    target = response_target(layer.weight, gram, cross, feedback_factor(gram, 1e-9))
    torch.testing.assert_close(
        target, torch.linalg.lstsq(seen.mT, layer.y.mT).solution.mT, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("columns", [130, 576])
def test_factor_and_target_have_the_same_bits_with_one_and_two_threads(columns: int) -> None:
    layer = Layer(groups=1, rows=24, columns=columns, patches=2 * columns, mix=1.0)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        factor = feedback_factor(layer.gram)
        found.append((factor, response_target(layer.weight, layer.gram, layer.cross, factor)))
        assert torch.get_num_threads() == threads
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
