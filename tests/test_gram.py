"""The gram operator against the definition: cut out every patch, multiply in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitsplit.ops.gram import GramSums

NAMES = ("G", "C", "sum_x", "sum_y", "sum_yy")


def patch_matrix(x: Tensor, kernel, stride, padding, dilation, groups) -> Tensor:
    """`[groups, B, positions, N]` in float64: one slice of the padded image for every output position."""
    x = F.pad(x.double(), [amount for p in reversed(padding) for amount in (p, p)])
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    starts = [range(0, n - r + 1, s) for n, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    patches = []
    for corner in itertools.product(*starts):
        cut = [slice(c, c + r, d) for c, r, d in zip(corner, reach, dilation, strict=True)]
        patches.append(x[(slice(None), slice(None), *cut)].reshape(len(x), groups, -1))
    return torch.stack(patches, 2).movedim(1, 0)


def reference(x, y, kernel, stride, padding, dilation, groups, positions=None) -> dict[str, Tensor]:
    X = patch_matrix(x, kernel, stride, padding, dilation, groups)
    Y = y.double().flatten(2).unflatten(1, (groups, -1)).permute(1, 0, 3, 2) if y is not None else X[..., :0]
    if positions is not None:
        X, Y = (torch.stack([m[:, b, positions[b]] for b in range(len(x))], 1) for m in (X, Y))
    X, Y = X.flatten(1, 2), Y.flatten(1, 2)
    return {"G": X.mT @ X, "C": X.mT @ Y, "sum_x": X.sum(1), "sum_y": Y.sum(1), "sum_yy": Y.square().sum(1)}


def measured(x, y, kernel, stride, padding, dilation, groups, positions=None) -> GramSums:
    columns = x.shape[1] // groups * math.prod(kernel)
    sums = GramSums.zeros(groups, columns, y.shape[1] // groups if y is not None else 0, x.device)
    geometry = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    sums.add(x, y, **geometry, positions=positions)
    return sums


def assert_close(sums: GramSums, expected: dict[str, Tensor], x: Tensor, y: Tensor | None) -> None:
    """Within rounding of the dtype, relative to what the terms of a sum can add up to."""
    length = {"x": x.double().norm().item(), "y": 0.0 if y is None else y.double().norm().item()}
    count = math.sqrt(max(sums.patches, 1))
    scale = {
        "G": length["x"] ** 2,
        "C": length["x"] * length["y"],
        "sum_x": count * length["x"],
        "sum_y": count * length["y"],
        "sum_yy": length["y"] ** 2,
    }
    tolerance = 5e-7 if x.dtype == torch.float32 else 2e-15
    for name in NAMES:
        error = (getattr(sums, name).cpu() - expected[name]).abs()
        assert error.numel() == 0 or error.max() <= tolerance * scale[name], f"{name}: {error.max()}"


def outputs_of(size, kernel, stride, padding, dilation) -> list[int]:
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]


def compare(
    images, channels, rows, size, kernel, stride, padding, dilation, groups, dtype, device="cpu"
) -> None:
    """channels and rows per group."""
    generator = torch.Generator().manual_seed(images + 7 * channels + 31 * rows)
    x = torch.rand(images, groups * channels, *size, generator=generator, dtype=dtype) - 0.2
    out = outputs_of(size, kernel, stride, padding, dilation)
    y = torch.randn(images, groups * rows, *out, generator=generator, dtype=dtype)
    layer = (kernel, stride, padding, dilation, groups)
    sums = measured(x.to(device), y.to(device), *layer)
    assert sums.patches == images * math.prod(out)
    assert torch.equal(sums.G, sums.G.mT)
    assert_close(sums, reference(x, y, *layer), x, y)


LAYERS = {
    # images, channels, rows, size, kernel, stride, padding, dilation, groups
    "3x3": (3, 20, 5, [9, 7], [3, 3], [1, 1], [1, 1], [1, 1], 1),
    "3x3 of several blocks": (2, 70, 40, [6, 5], [3, 3], [1, 1], [1, 1], [1, 1], 1),
    "3x3 of several bands": (1, 300, 3, [3, 3], [3, 3], [1, 1], [1, 1], [1, 1], 1),
    "5x5 of several bands": (1, 140, 2, [4, 4], [5, 5], [1, 1], [2, 2], [1, 1], 1),
    "3x3, many tiles": (40, 16, 4, [8, 9], [3, 3], [1, 1], [1, 1], [1, 1], 1),
    "no padding": (2, 16, 3, [8, 8], [3, 3], [1, 1], [0, 0], [1, 1], 1),
    "wide padding": (2, 16, 3, [4, 5], [3, 3], [1, 1], [4, 3], [1, 1], 1),
    "image smaller than kernel": (2, 18, 3, [1, 2], [5, 5], [1, 1], [2, 2], [1, 1], 1),
    "5x5": (2, 17, 3, [7, 8], [5, 5], [1, 1], [2, 2], [1, 1], 1),
    "7x7, dilated": (1, 16, 2, [15, 9], [7, 7], [1, 1], [6, 6], [2, 2], 1),
    "one-sided": (2, 16, 3, [7, 9], [1, 5], [1, 1], [0, 2], [1, 1], 1),
    "stride 2": (3, 24, 3, [9, 8], [3, 3], [2, 2], [1, 1], [1, 1], 1),
    "stride above kernel": (2, 16, 3, [11, 10], [2, 2], [3, 4], [0, 1], [1, 1], 1),
    "stride and dilation": (2, 16, 3, [13, 11], [3, 3], [2, 3], [2, 2], [2, 2], 1),
    "first layer": (2, 3, 8, [17, 19], [7, 7], [2, 2], [3, 3], [1, 1], 1),
    "pointwise": (3, 75, 33, [5, 4], [1, 1], [1, 1], [0, 0], [1, 1], 1),
    "pointwise, stride 2": (3, 33, 9, [5, 6], [1, 1], [2, 2], [0, 0], [1, 1], 1),
    "pointwise, padded": (2, 8, 3, [3, 4], [1, 1], [1, 1], [2, 1], [1, 1], 1),
    "depthwise": (3, 1, 1, [9, 8], [3, 3], [1, 1], [1, 1], [1, 1], 37),
    "depthwise 5x5, stride 2": (3, 1, 1, [9, 8], [5, 5], [2, 2], [2, 2], [1, 1], 24),
    "depthwise, two outputs each": (3, 1, 2, [6, 8], [3, 3], [1, 1], [1, 1], [1, 1], 16),
    "narrow groups": (2, 5, 3, [6, 7], [3, 3], [1, 1], [1, 1], [1, 1], 18),
    "two narrow groups": (2, 3, 3, [6, 7], [3, 3], [1, 1], [1, 1], [1, 1], 2),
    "wide groups": (2, 33, 17, [4, 5], [3, 3], [1, 1], [1, 1], [1, 1], 3),
    "one image, one position": (1, 4, 2, [3, 3], [3, 3], [1, 1], [0, 0], [1, 1], 1),
    "3-d": (2, 16, 3, [4, 5, 3], [3, 2, 3], [1, 1, 1], [1, 0, 1], [1, 1, 1], 1),
    "3-d, stride 2": (2, 3, 3, [5, 6, 4], [3, 3, 2], [2, 1, 2], [1, 1, 0], [1, 2, 1], 2),
    "1-d": (3, 16, 4, [19], [5], [1], [2], [1], 1),
    "1-d, strided groups": (3, 6, 4, [19], [4], [2], [2], [2], 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer: str, dtype: torch.dtype) -> None:
    compare(*LAYERS[layer], dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_cuda(layer: str, dtype: torch.dtype) -> None:
    compare(*LAYERS[layer], dtype, device="cuda")


@st.composite
def geometries(draw):
    axes = draw(st.integers(2, 3))
    numbers = [
        draw(st.lists(st.integers(*r), min_size=axes, max_size=axes))
        for r in ((1, 5), (1, 3), (0, 4), (1, 3))
    ]
    kernel, stride, padding, dilation = numbers
    needed = [d * (k - 1) + 1 - 2 * p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [max(draw(st.integers(1, 8)), n) for n in needed]
    return size, kernel, stride, padding, dilation


@settings(max_examples=80, derandomize=True)
@given(
    geometry=geometries(),
    images=st.integers(1, 4),
    channels=st.sampled_from([1, 2, 3, 16, 19]),
    rows=st.sampled_from([1, 2, 18]),
    groups=st.sampled_from([1, 1, 2, 17]),
)
def test_any_geometry(geometry, images: int, channels: int, rows: int, groups: int) -> None:
    channels = min(channels, 3) if groups == 17 else channels
    if channels * math.prod(geometry[1]) > 400:
        channels = 1
    compare(images, channels, rows, *geometry, groups, torch.float32)


def test_by_hand() -> None:
    """x = [[1, 2], [3, 4]] padded by one row above and below; a column kernel of two taps sees
    (0, 1), (1, 3), (3, 0) in the left column of pixels and (0, 2), (2, 4), (4, 0) in the right one."""
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    y = torch.tensor([[[[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]]])
    sums = measured(x, y, [2, 1], [1, 1], [1, 0], [1, 1], 1)
    assert sums.patches == 6
    assert sums.G.tolist() == [[[30.0, 11.0], [11.0, 30.0]]]
    assert sums.C.tolist() == [[[8.0], [1.0]]]
    assert sums.sum_x.tolist() == [[10.0, 10.0]]
    assert sums.sum_y.tolist() == [[3.0]]
    assert sums.sum_yy.tolist() == [[5.0]]


@pytest.mark.parametrize("groups", [1, 2, 20])
def test_sampled_positions(groups: int) -> None:
    """Some positions may repeat, others never come."""
    x = torch.randn(3, 20, 6, 5)
    y = torch.randn(3, 20, 3, 3)
    layer = ([3, 3], [2, 2], [1, 1], [1, 1], groups)
    positions = torch.tensor([[0, 0, 8, 4], [7, 3, 2, 1], [5, 6, 5, 5]])
    sums = measured(x, y, *layer, positions)
    assert sums.patches == 12
    assert_close(sums, reference(x, y, *layer, positions), x, y)


def test_all_positions_are_the_default() -> None:
    x, y = torch.randn(2, 16, 5, 5), torch.randn(2, 4, 5, 5)
    layer = ([3, 3], [1, 1], [1, 1], [1, 1], 1)
    sampled = measured(x, y, *layer, torch.arange(25).expand(2, 25))
    assert_close(sampled, reference(x, y, *layer), x, y)


def test_linear_with_leading_axes() -> None:
    x, y = torch.randn(3, 5, 40), torch.randn(3, 5, 7)
    sums = GramSums.zeros(1, 40, 7)
    assert sums.add(x, y) == 15
    X, Y = x.flatten(0, 1).double(), y.flatten(0, 1).double()
    expected = {"G": X.T @ X, "C": X.T @ Y, "sum_x": X.sum(0), "sum_y": Y.sum(0), "sum_yy": Y.square().sum(0)}
    assert_close(sums, expected, x, y)


def test_batches_add_up_and_empty_ones_add_nothing() -> None:
    x, y = torch.randn(7, 16, 5, 5), torch.randn(7, 4, 5, 5)
    geometry = {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1]}
    sums = GramSums.zeros(1, 144, 4)
    for part in (slice(0, 3), slice(3, 3), slice(3, 7)):
        sums.add(x[part], y[part], **geometry)
    assert sums.patches == 7 * 25
    assert_close(sums, reference(x, y, [3, 3], [1, 1], [1, 1], [1, 1], 1), x, y)
    before = [getattr(sums, name).clone() for name in NAMES]
    assert sums.add(x[:0], y[:0], **geometry) == 0
    assert sums.add(x, y, **geometry, positions=torch.zeros(7, 0, dtype=torch.int64)) == 0
    assert all(torch.equal(old, getattr(sums, name)) for old, name in zip(before, NAMES, strict=True))


def test_without_outputs_their_sums_stay() -> None:
    x = torch.randn(2, 16, 5, 5)
    sums = GramSums.zeros(1, 144, 4)
    for name in ("C", "sum_y", "sum_yy"):
        getattr(sums, name).fill_(3.0)
    sums.add(x, kernel=[3, 3], stride=[1, 1], padding=[1, 1], dilation=[1, 1])
    expected = reference(x, None, [3, 3], [1, 1], [1, 1], [1, 1], 1)
    assert (sums.G - expected["G"]).abs().max() < 1e-4
    assert (sums.sum_x - expected["sum_x"]).abs().max() < 1e-4
    assert all((getattr(sums, name) == 3.0).all() for name in ("C", "sum_y", "sum_yy"))


@pytest.mark.parametrize("groups", [1, 32])
def test_memory_format_does_not_matter(groups: int) -> None:
    x, y = torch.randn(4, 32, 7, 6), torch.randn(4, 32, 7, 6)
    layouts = {
        "channels last": lambda t: t.to(memory_format=torch.channels_last),
        "strided": lambda t: torch.stack([t, -t], -1)[..., 0],
        "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda t: t[:1].expand(4, -1, -1, -1),
    }
    layer = ([3, 3], [1, 1], [1, 1], [1, 1], groups)
    for name, layout in layouts.items():
        plain = measured(layout(x).contiguous(), layout(y).contiguous(), *layer)
        sums = measured(layout(x), layout(y), *layer)
        assert all(torch.equal(getattr(sums, key), getattr(plain, key)) for key in NAMES), name


@pytest.mark.parametrize(
    "layer", ["3x3, many tiles", "3x3 of several blocks", "depthwise", "first layer", "pointwise"]
)
def test_threads_do_not_change_a_bit(layer: str) -> None:
    images, channels, rows, size, kernel, stride, padding, dilation, groups = LAYERS[layer]
    x = torch.randn(64, groups * channels, *size)
    y = torch.randn(64, groups * rows, *outputs_of(size, kernel, stride, padding, dilation))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(measured(x, y, kernel, stride, padding, dilation, groups))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(getattr(results[0], name), getattr(other, name)) for name in NAMES)


def test_float32_keeps_six_digits_over_many_positive_values() -> None:
    """The worst case for rounding: everything positive, 200,000 patches."""
    x = torch.rand(50, 16, 64, 64)
    exact = measured(x.double(), None, [3, 3], [1, 1], [1, 1], [1, 1], 1)
    rounded = measured(x, None, [3, 3], [1, 1], [1, 1], [1, 1], 1)
    assert ((rounded.G - exact.G) / exact.G).abs().max() < 3e-7
    assert ((rounded.sum_x - exact.sum_x) / exact.sum_x).abs().max() < 3e-7


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("groups", [1, 16])
def test_non_finite_values_show(bad: float, groups: int) -> None:
    x = torch.randn(2, 16, 5, 5)
    x[1, 3, 2, 2] = bad
    sums = measured(x, None, [3, 3], [1, 1], [1, 1], [1, 1], groups)
    column = 3 * 9 if groups == 1 else 0
    group = 0 if groups == 1 else 3
    assert not sums.G[group, column, column].isfinite()
    assert not sums.sum_x[group, column].isfinite()


def test_dead_channel_has_exactly_zero_sums() -> None:
    x = torch.randn(2, 20, 5, 5)
    x[:, 7] = 0
    sums = measured(x, None, [3, 3], [1, 1], [1, 1], [1, 1], 1)
    assert (sums.G[0, 63:72] == 0).all() and (sums.G[0, :, 63:72] == 0).all()
