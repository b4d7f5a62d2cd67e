"""The table of layer kinds: a layer's matrix times its columns is what the layer computes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitsplit.network import KINDS, Columns, kind_of

CONVOLUTIONS = [
    nn.Conv1d(4, 6, 3, padding=1),
    nn.Conv1d(4, 6, 4, padding="same"),
    nn.Conv1d(4, 6, 5, stride=2, padding=2, padding_mode="circular"),
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False),
    nn.Conv2d(4, 4, 3, padding=1, groups=4),
    nn.Conv2d(4, 8, 3, padding=1, groups=4),
    nn.Conv2d(4, 6, 1),
    nn.Conv2d(4, 6, 3, padding="same"),
    nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 3)),
    nn.Conv2d(4, 6, 3, padding="valid"),
    nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="replicate"),
    nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="circular"),
    nn.Conv2d(4, 6, (3, 2), padding="same", padding_mode="reflect"),
    nn.Conv3d(4, 6, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)),
    nn.Conv3d(4, 4, 2, groups=2, padding="same"),
]

TRANSPOSED = [
    nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)),
    nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, dilation=2, bias=False),
    nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4),
    nn.ConvTranspose2d(4, 6, 1, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose3d(4, 6, (1, 2, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
]


class SamePadding(nn.Conv2d):
    """Pads by itself, one pixel more on the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


def unfolded(columns: Columns) -> Tensor:
    """X, Tensor[B, groups, columns, positions], one patch at a time."""
    ends = [end for pad in reversed(columns.padding) for end in (pad, pad)]
    x = F.pad(columns.x, ends)
    patches = []
    for position in itertools.product(*map(range, columns.out_spatial)):
        taps = [
            slice(p * s, p * s + d * (k - 1) + 1, d)
            for p, s, d, k in zip(position, columns.stride, columns.dilation, columns.kernel, strict=True)
        ]
        patch = x[(slice(None), slice(None), *taps)]
        patches.append(patch.reshape(x.shape[0], columns.groups, -1))
    return torch.stack(patches, dim=3)


def check(layer: nn.Module, x: Tensor) -> None:
    kind = kind_of(layer)
    with torch.no_grad():
        y = layer(x)
        columns = kind.columns(layer, x, y)
        product = kind.matrix(layer, layer.weight) @ unfolded(columns)
        expected = columns.y.reshape(product.shape)
        if layer.bias is not None:
            expected = expected - layer.bias.view(product.shape[1], product.shape[2], 1)
    assert columns.x.dim() == columns.y.dim() and columns.x.dim() in (4, 5)
    assert columns.y.shape[2:] == columns.out_spatial
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", CONVOLUTIONS + TRANSPOSED, ids=str)
@pytest.mark.parametrize("batched", [True, False])
def test_matrix_times_columns_is_the_layer(layer: nn.Module, batched: bool) -> None:
    x = torch.randn(4, *(7, 6, 5)[: len(layer.kernel_size)])
    check(layer, torch.stack([x, 2 - x]) if batched else x)


@pytest.mark.parametrize("shape", [(3, 8), (8,), (2, 5, 8), (2, 3, 4, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_on_any_number_of_axes(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = nn.Linear(8, 5, bias=bias), torch.randn(shape)
    columns = kind_of(layer).columns(layer, x, layer(x))
    product = kind_of(layer).matrix(layer, layer.weight) @ unfolded(columns)
    expected = columns.y.reshape(product.shape) - (layer.bias.view(1, -1, 1) if bias else 0)
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [*CONVOLUTIONS, *TRANSPOSED, nn.Linear(8, 5)], ids=str)
def test_the_matrix_form_can_be_undone(layer: nn.Module) -> None:
    kind = kind_of(layer)
    matrix = kind.matrix(layer, layer.weight)
    groups = getattr(layer, "groups", 1)
    assert matrix.shape[0] == groups
    assert matrix.shape[:2].numel() == layer.weight.shape[kind.channel_axis] * (
        groups if kind.channel_axis == 1 else 1
    )
    assert torch.equal(kind.unmatrix(layer, matrix), layer.weight)


def test_a_convolution_that_pads_by_itself_is_asked_for_its_input() -> None:
    check(SamePadding(4, 6, 2, stride=2), torch.randn(2, 4, 7, 6))


def test_timms_convolutions_with_same_padding() -> None:
    conv2d_same = pytest.importorskip("timm.layers").Conv2dSame
    check(conv2d_same(4, 6, 3, stride=2), torch.randn(2, 4, 8, 7))
    check(conv2d_same(4, 4, 5, stride=2, dilation=1, groups=4), torch.randn(2, 4, 9, 8))


def test_the_output_size_a_caller_asked_for_is_respected() -> None:
    layer, x = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), torch.randn(1, 4, 5, 5)
    y = layer(x, output_size=(10, 9))
    columns = kind_of(layer).columns(layer, x, y)
    assert columns.out_spatial == (10, 9)


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2, 4]),
    transposed=st.booleans(),
)
def test_any_geometry(kernel, stride, padding, dilation, groups, transposed) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(4, 4, kernel, stride, padding, dilation=dilation, groups=groups)
    check(layer, torch.randn(2, 4, 8, 9))


def test_sampled_positions_differ_within_an_image_and_follow_the_seed() -> None:
    layer = nn.Conv2d(3, 4, 3)
    columns = kind_of(layer).columns(layer, torch.randn(5, 3, 10, 8))
    positions = columns.sample(20, seed=3)
    assert positions.shape == (5, 20) and positions.dtype == torch.int64
    assert int(positions.min()) >= 0 and int(positions.max()) < 48
    assert all(len(set(row)) == 20 for row in positions.tolist())
    assert torch.equal(positions, columns.sample(20, seed=3))
    assert not torch.equal(positions, columns.sample(20, seed=4))
    assert columns.sample(48, seed=3) is None


def test_kinds_are_told_apart_and_others_have_none() -> None:
    assert [kind.name for kind in KINDS] == [
        "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear"
    ]  # fmt: skip
    assert kind_of(SamePadding(1, 1, 1)).name == "Conv2d"
    assert all(kind_of(module) is None for module in (nn.ReLU(), nn.BatchNorm2d(3), nn.Bilinear(2, 2, 2)))
