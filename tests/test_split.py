"""The split solvers against reference_split.py, and what must hold for any problem."""

from __future__ import annotations

import numpy as np
import pytest
import reference_split as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitsplit.ops.split import (
    best_of,
    damped,
    feedback,
    feedback_factor,
    fwa,
    objective,
    ofwa,
    planes,
    polish,
    response_target,
    solve_starts,
)

NEAR_TIE = 1e-9  # float64: a decision this near a tie may go either way, and all after it with it


class Layer:
    """A random layer in matrix form, float64: inputs x [g, N, K], weights [g, M, N], second moments."""

    def __init__(
        self, groups: int = 1, rows: int = 5, columns: int = 30, patches: int = 90, mix: float = 0.0
    ):
        x = torch.randn(groups, columns, patches, dtype=torch.float64)
        self.x = x + mix * (x.roll(1, 1) + x.mean(1, keepdim=True))
        self.weight = torch.randn(groups, rows, columns, dtype=torch.float64)
        self.measure()

    def measure(self) -> Layer:
        """Recompute what follows from x and weight."""
        self.y = self.weight @ self.x
        self.gram, self.cross = self.x @ self.x.mT, self.x @ self.y.mT
        self.energy = self.y.square().sum(2)
        return self

    def moments(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        return self.gram.to(dtype), self.cross.to(dtype)

    def objective(self, codes: Tensor, scale: Tensor) -> Tensor:
        return objective(codes, scale, self.gram, self.cross, self.energy)


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


@bits_and_correlation
@pytest.mark.parametrize(("solver", "slow"), [(planes, reference.planes), (polish, reference.polish)])
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
    codes = feedback(layer.weight, scale, feedback_factor(layer.gram, 0.02), bits)
    gram, ties = damped(layer.gram, 0.02)[0].numpy(), [reference.Ties() for _ in range(4)]
    expected = [
        (reference.feedback(w, s.item(), gram, bits, tie), s.item())
        for w, s, tie in zip(layer.weight[0].numpy(), scale[0], ties, strict=True)
    ]
    assert_follows(codes[0], scale[0], expected, ties)


def test_reference_feedback_by_hand() -> None:
    """Two equal inputs: what the first weight loses in rounding, the second takes over."""
    gram = np.array([[1.0, 1.0], [1.0, 1.0001]])
    assert reference.feedback(np.array([0.4, 0.4]), 1.0, gram, 2).tolist() == [0, 1]
    assert reference.feedback(np.array([0.4, 0.4]), 1.0, np.eye(2), 2).tolist() == [0, 0]


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
        rounded = feedback(weight, stacked, factor, 4)
        results.append(
            (
                codes,
                scale,
                rounded,
                *polish(rounded, stacked, gram, cross, 4),
                *planes(codes, scale, gram, cross, 4),
            )
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    codes, scale, rounded, *polished = results[0][:7]
    for start, multiplier in enumerate((0.8, 1.0)):
        rows = slice(start * 37, (start + 1) * 37)
        alone = feedback(weight, scale * multiplier, factor, 4)
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
    best = solve_starts(target, scales, *layer.moments(), factor, 3)
    each = torch.stack(
        [
            layer.objective(*solve_starts(target, s[:, None], *layer.moments(), factor, 3)[:2])
            for s in scales.unbind(1)
        ]
    )
    torch.testing.assert_close(layer.objective(best.codes, best.scale), each.amin(0))
    assert len(each.argmin(0).unique()) > 1  # else keeping the best of every channel was not tested
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


# ---- Degenerate problems ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_zero_rows(dtype: torch.dtype) -> None:
    layer = Layer(rows=3)
    layer.weight[0, 1] = 0
    layer.measure()
    codes, scale = fwa(layer.weight.to(dtype), 4)
    assert not codes[0, 1].any() and scale[0, 1] == 1
    factor = feedback_factor(layer.gram)
    assert not feedback(layer.weight.to(dtype), scale, factor, 4)[0, 1].any()
    for solver in (planes, polish):
        result = solver(codes, scale, *layer.moments(dtype), 4)
        assert not result.codes[0, 1].any()
        assert result.scale[0, 1] == 1 and result.explained[0, 1] == 0


@pytest.mark.parametrize("solver", [planes, polish])
def test_inputs_that_are_never_active_keep_everything(solver) -> None:
    layer = Layer(rows=3)
    layer.x.zero_()
    layer.measure()
    codes, scale = fwa(layer.weight, 4)
    result = solver(codes, scale, *layer.moments(), 4)
    assert torch.equal(result.codes, codes) and torch.equal(result.scale, scale)
    rounded = feedback(layer.weight, scale, feedback_factor(layer.gram), 4)
    assert torch.equal(rounded, codes)


def test_tiny_rows_do_not_underflow_in_float32() -> None:
    """Dead channels of trained networks have weights near 1e-41; they are solved like any other row."""
    layer = Layer(rows=4, columns=40)
    plain = polish(*fwa(layer.weight, 4), *layer.moments(torch.float32), 4)
    layer.weight[0, 2] *= 2.0**-133
    layer.measure()
    tiny = polish(*fwa(layer.weight, 4), layer.gram.float(), layer.cross.float(), 4)
    assert torch.isfinite(tiny.scale).all() and (tiny.scale > 0).all()
    np.testing.assert_allclose(tiny.scale[0, 2] * 2.0**133, plain.scale[0, 2], rtol=0.05)
    keep = torch.tensor([0, 1, 3])
    assert torch.equal(tiny.codes[:, keep], plain.codes[:, keep])


@pytest.mark.parametrize("solver", [planes, polish])
def test_scale_never_turns_negative(solver) -> None:
    """From codes that answer with the wrong sign, the scale stays until the codes have turned round."""
    layer = Layer(rows=6, columns=40, mix=0.5)
    codes, scale = fwa(layer.weight, 4)
    stuck = solver(-codes, scale, *layer.moments(), 4, 0)
    assert torch.equal(stuck.scale, scale)
    result = solver(-codes, scale, *layer.moments(), 4)
    assert (result.scale > 0).all()
    assert (layer.objective(result.codes, result.scale) < layer.energy).all()


def test_empty_tensors_give_empty_results() -> None:
    zero = torch.zeros
    for groups, rows, columns in [(0, 3, 4), (2, 0, 4), (2, 3, 0)]:
        codes, scale = fwa(zero(groups, rows, columns), 4)
        assert codes.shape == (groups, rows, columns) and scale.shape == (groups, rows)
        gram, cross = zero(groups, columns, columns), zero(groups, columns, rows)
        assert polish(codes, scale, gram, cross, 4).codes.shape == codes.shape
        factor = torch.eye(columns).expand(groups, -1, -1)
        assert feedback(zero(groups, rows, columns), scale, factor, 4).shape == codes.shape
        energy = zero(groups, rows, dtype=torch.float64)
        assert objective(codes, scale, gram, cross, energy).shape == scale.shape


def test_strides_do_not_matter() -> None:
    layer = Layer(rows=6, columns=40, mix=1.0)
    spread = torch.empty(1, 40, 6, 2, dtype=torch.float64)
    spread[..., 0] = layer.weight.mT
    codes, scale = fwa(spread[..., 0].mT, 4)
    for a, b in zip((codes, scale), fwa(layer.weight, 4), strict=True):
        assert torch.equal(a, b)
    plain = polish(codes, scale, *layer.moments(), 4)
    strided = polish(codes.mT.contiguous().mT, scale, layer.gram.mT, layer.cross.mT.contiguous().mT, 4)
    assert torch.equal(plain.codes, strided.codes)


# ---- Errors say what was required and what was given -----------------------------------------------------


def descent_arguments(**changed) -> dict:
    layer = Layer(rows=3, columns=10)
    codes, scale = fwa(layer.weight, 4)
    return {
        "codes": codes,
        "scale": scale,
        "gram": layer.gram,
        "cross": layer.cross,
        "bits": 4,
        "rounds": 5,
        **changed,
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 1}, "bits must be 2 to 8, got 1"),
        ({"bits": 3}, r"codes must lie in -3\.\.3 for 3 bits"),
        ({"rounds": -1}, "rounds must not be negative, got -1"),
        ({"codes": torch.zeros(1, 3, 10)}, "codes must be int8"),
        ({"codes": torch.zeros(3, 10, dtype=torch.int8)}, "codes must have 3 axes"),
        (
            {"codes": torch.zeros(1, 4, 10, dtype=torch.int8)},
            "codes must have a multiple of the number of channels",
        ),
        ({"scale": torch.ones(1, 3)}, "scale must be float64"),
        ({"scale": torch.ones(1, 2, dtype=torch.float64)}, r"scale must have shape \[1, 3\], got \[1, 2\]"),
        ({"scale": torch.zeros(1, 3, dtype=torch.float64)}, "scale must be positive and finite"),
        ({"scale": torch.full((1, 3), torch.nan, dtype=torch.float64)}, "scale must be positive and finite"),
        ({"gram": torch.full((1, 10, 10), torch.nan)}, "gram holds NaN or infinite values"),
        ({"gram": torch.eye(9)[None]}, r"gram must have shape \[1, 10, 10\], got \[1, 9, 9\]"),
        ({"gram": torch.eye(10, dtype=torch.float16)[None]}, "gram must be float32 or float64"),
        ({"cross": torch.full((1, 10, 3), torch.inf)}, "cross holds NaN or infinite values"),
        ({"cross": torch.ones(1, 3, 10)}, r"cross must have shape \[1, 10, 10\]"),
    ],
)
@pytest.mark.parametrize("solver", [planes, polish])
def test_descent_refuses(solver, changed: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        solver(**descent_arguments(**changed))


def test_weight_space_and_feedback_refuse() -> None:
    weight, scale = torch.randn(1, 3, 10), torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="weight holds NaN"):
        fwa(weight * torch.nan, 4)
    with pytest.raises(RuntimeError, match="weight must have 3 axes"):
        fwa(weight[0], 4)
    with pytest.raises(RuntimeError, match="weight must be float32 or float64"):
        fwa(weight.half(), 4)
    with pytest.raises(RuntimeError, match="target holds NaN"):
        feedback(weight * torch.nan, scale, torch.eye(10)[None], 4)
    with pytest.raises(RuntimeError, match="factor must have a positive diagonal"):
        feedback(weight, scale, torch.zeros(1, 10, 10), 4)
    with pytest.raises(RuntimeError, match="scale must have a multiple of the number of channels"):
        feedback(weight, torch.ones(1, 4, dtype=torch.float64), torch.eye(10)[None], 4)
    with pytest.raises(RuntimeError, match="codes must have shape"):
        ofwa(weight, torch.zeros(1, 2, 10, dtype=torch.int8), scale, 4)


# ---- Properties ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    bits=st.integers(2, 8),
    groups=st.integers(1, 3),
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_stage_is_on_the_grid_and_no_worse_than_the_one_before(
    seed, bits, groups, rows, columns, dtype
) -> None:
    torch.manual_seed(seed)
    layer = Layer(groups, rows, columns, patches=columns + 10, mix=0.7)
    weight, moments = layer.weight.to(dtype), layer.moments(dtype)
    slack = 1e-12 if dtype == torch.float64 else 1e-5
    codes, scale = fwa(weight, bits)
    starts = [(codes, scale), (feedback(weight, scale, feedback_factor(layer.gram), bits), scale)]
    for codes, scale in starts:
        error = layer.objective(codes, scale)
        for solver in (planes, polish):
            result = solver(codes, scale, *moments, bits, 30)
            codes, scale = result.codes, result.scale
            after = layer.objective(codes, scale)
            assert (after <= error + slack * layer.energy).all()
            assert codes.abs().max() <= 2 ** (bits - 1) - 1
            assert (scale > 0).all()
            assert (result.rounds >= 1).all() and (result.rounds <= 30).all()
            error = after


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), power=st.integers(-20, 20), bits=st.integers(2, 8))
def test_scaling_a_layer_by_a_power_of_two_scales_the_result(seed, power, bits) -> None:
    torch.manual_seed(seed)
    layer = Layer(columns=20, mix=0.5)
    codes, scale = fwa(layer.weight, bits)
    plain = polish(codes, scale, *layer.moments(), bits)
    bigger, bigger_scale = fwa(layer.weight * 2.0**power, bits)
    assert torch.equal(bigger, codes) and torch.equal(bigger_scale, scale * 2.0**power)
    scaled = polish(bigger, bigger_scale, layer.gram, layer.cross * 2.0**power, bits)
    assert torch.equal(scaled.codes, plain.codes)
    assert torch.equal(scaled.scale, plain.scale * 2.0**power)


# ---- Operators -------------------------------------------------------------------------------------------


def operator_calls(device: torch.device) -> dict[str, tuple]:
    layer = Layer(groups=2, rows=3, columns=20, mix=0.5)
    codes, scale = fwa(layer.weight, 4)
    moments = (codes, scale, layer.gram, layer.cross)
    calls = {
        "fwa": (layer.weight, 4),
        "ofwa": (layer.weight, codes, scale, 4, 5),
        "planes": (*moments, 4, 5),
        "polish": (*moments, 4, 5),
        "feedback": (layer.weight, scale, feedback_factor(layer.gram), 4),
        "objective": (*moments, layer.energy),
    }
    return {
        name: tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
        for name, arguments in calls.items()
    }


OPERATORS = ["fwa", "ofwa", "planes", "polish", "feedback", "objective"]


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_pass_opcheck(name: str, device: torch.device) -> None:
    torch.library.opcheck(getattr(torch.ops.bitsplit, name).default, operator_calls(device)[name])


@pytest.mark.parametrize("name", OPERATORS)
def test_arguments_are_left_alone(name: str, device: torch.device) -> None:
    arguments = operator_calls(device)[name]
    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    getattr(torch.ops.bitsplit, name)(*arguments)
    for argument, copy in zip(arguments, copies, strict=True):
        assert not isinstance(argument, Tensor) or torch.equal(argument, copy)


@pytest.mark.cuda
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_cuda_follows_the_cpu(bits: int) -> None:
    layer = Layer(groups=2, rows=37, columns=130, patches=300, mix=1.0)
    weight = layer.weight.cuda()
    codes, scale = fwa(layer.weight, bits)
    on_gpu = fwa(weight, bits)
    assert torch.equal(on_gpu[0].cpu(), codes)
    torch.testing.assert_close(on_gpu[1].cpu(), scale, rtol=1e-12, atol=0)
    factor = feedback_factor(layer.gram)
    rounded = feedback(layer.weight, scale, factor, bits)
    assert (feedback(weight, scale.cuda(), factor.cuda(), bits).cpu() == rounded).all(
        2
    ).double().mean() > 0.95
    for solver in (planes, polish):
        cpu = solver(codes, scale, *layer.moments(), bits)
        gpu = solver(codes.cuda(), scale.cuda(), layer.gram.cuda(), layer.cross.cuda(), bits)
        same = (gpu.codes.cpu() == cpu.codes).all(2)
        assert same.double().mean() > 0.95  # a row that met a tie may have gone the other way
        torch.testing.assert_close(gpu.explained.cpu()[same], cpu.explained[same], rtol=1e-9, atol=0)
        single = solver(codes.cuda(), scale.cuda(), layer.gram.cuda(), layer.cross.cuda().float(), bits)
        ratio = layer.objective(single.codes.cpu(), single.scale.cpu()) / layer.objective(
            cpu.codes, cpu.scale
        )
        assert abs(ratio.log().mean()) < 3e-3
