"""The split solvers at their edges: degenerate layers, wrong arguments, invariants, operators."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from split_layers import Layer, feedback, polish, search, symmetric
from torch import Tensor

from bitsplit.ops.split import fwa, objective, ofwa, planes
from bitsplit.ops.starts import feedback_factor

# ---- Degenerate problems ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_zero_rows(dtype: torch.dtype) -> None:
    layer = Layer(rows=3)
    layer.weight[0, 1] = 0
    layer.measure()
    codes, scale = fwa(layer.weight.to(dtype), 4)
    assert not codes[0, 1].any() and scale[0, 1] == 1
    factor = feedback_factor(layer.gram)
    assert not feedback(layer.weight.to(dtype), scale, factor, 4)[0][0, 1].any()
    for solver in (planes, polish, partial(search, steps=50)):
        result = solver(codes, scale, *layer.moments(dtype), 4)
        assert not result.codes[0, 1].any()
        assert result.scale[0, 1] == 1 and result.explained[0, 1] == 0


@pytest.mark.parametrize("solver", [planes, polish, partial(search, steps=50)])
def test_inputs_that_are_never_active_keep_everything(solver) -> None:
    layer = Layer(rows=3)
    layer.x.zero_()
    layer.measure()
    codes, scale = fwa(layer.weight, 4)
    result = solver(codes, scale, *layer.moments(), 4)
    assert torch.equal(result.codes, codes) and torch.equal(result.scale, scale)
    rounded, _ = feedback(layer.weight, scale, feedback_factor(layer.gram), 4)
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
        assert feedback(zero(groups, rows, columns), scale, factor, 4)[0].shape == codes.shape
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


def test_the_damping_grows_where_rounding_left_gram_indefinite() -> None:
    good, noisy = torch.eye(3), torch.eye(3)
    noisy[0, 1] = noisy[1, 0] = 1.05  # an eigenvalue of -0.05
    factor = feedback_factor(torch.stack([good, noisy]))
    torch.testing.assert_close(factor @ factor.mT, torch.stack([1.01 * good, noisy + 0.1 * good]))
    with pytest.raises(ValueError, match="not a matrix of second moments"):
        feedback_factor(torch.full((1, 2, 2), torch.nan))


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


@pytest.mark.parametrize(
    ("bits", "message"), [(1, "bits must be 2 to 8, got 1"), (3, r"codes must lie in -3\.\.3 for 3 bits")]
)
def test_planes_refuse_bits(bits: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        planes(**descent_arguments(bits=bits))


@pytest.mark.parametrize("steps", [-1, 2**31])
def test_search_refuses_steps(steps: int) -> None:
    arguments = descent_arguments()
    del arguments["rounds"]
    with pytest.raises(RuntimeError, match=f"steps must be 0 to .*, got {steps}"):
        search(**arguments, steps=steps)


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


@settings(max_examples=40, derandomize=True)
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
    starts = [(codes, scale), (feedback(weight, scale, feedback_factor(layer.gram), bits)[0], scale)]
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


@settings(max_examples=20, derandomize=True)
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
        "polish": (*moments, symmetric(scale, 4), 5, True),
        "search": (*moments, symmetric(scale, 4), 30, 1, False),
        "feedback": (layer.weight, scale, feedback_factor(layer.gram), symmetric(scale, 4)),
        "objective": (*moments, layer.energy),
    }
    return {
        name: tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)
        for name, arguments in calls.items()
    }


OPERATORS = ["fwa", "ofwa", "planes", "polish", "search", "feedback", "objective"]


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
    rounded, loss = feedback(layer.weight, scale, factor, bits)
    on_gpu, gpu_loss = (tensor.cpu() for tensor in feedback(weight, scale.cuda(), factor.cuda(), bits))
    same = (on_gpu == rounded).all(2)
    assert same.double().mean() > 0.95
    torch.testing.assert_close(gpu_loss[same], loss[same], rtol=1e-9, atol=0)
    for solver in (planes, polish, partial(search, steps=200)):
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
