"""The kinds of layers that can be quantized, one row each: how a weight becomes a matrix, an input columns.

In matrix form a layer is ``Y = W X`` with ``W`` [groups, rows, columns]: rows are the output channels of a
group, columns its input channels times the kernel's positions, in the order of ``weight.reshape(out, -1)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsplit.network.product import padded_input


@dataclass(frozen=True)
class Columns:
    """A layer's input and output as a zero-padded convolution sees them.

    x: Tensor[B, C, *spatial] with 2 or 3 spatial axes.  y: Tensor[B, groups * rows, *out spatial] or None.
    Column ``p`` of X is the patch under output position ``p``.
    """

    x: Tensor
    y: Tensor | None
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """The size of the output along each spatial axis."""
        sizes = zip(self.x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)

    def sample(self, patches: int, seed: int) -> Tensor | None:
        """``patches`` different output positions of each image, int64 [B, patches]; None for all."""
        total = math.prod(self.out_spatial)
        if patches >= total:
            return None
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(self.x.shape[0], total, generator=generator).argsort(dim=1, stable=True)
        return order[:, :patches].contiguous().to(self.x.device)


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer.

    types: the classes it covers, subclasses included.  channel_axis: where ``weight`` has its output
    channels.
    spatial: number of spatial axes, 0 for a linear layer.  The functions take the module first.
    """

    name: str
    types: tuple[type[nn.Module], ...]
    channel_axis: int
    spatial: int
    _matrix: Callable[[nn.Module, Tensor], Tensor]
    _unmatrix: Callable[[nn.Module, Tensor], Tensor]
    _columns: Callable[[nn.Module, Tensor, Tensor | None], Columns]

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """``weight`` in matrix form, Tensor[groups, rows, columns]."""
        return self._matrix(module, weight)

    def unmatrix(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """The inverse of ``matrix``: a tensor in the shape of ``module.weight``."""
        return self._unmatrix(module, matrix)

    def columns(self, module: nn.Module, x: Tensor, y: Tensor | None = None) -> Columns:
        """What the module does with input ``x`` (and output ``y``) as a plain convolution.

        Any padding but symmetric zeros is applied to ``x`` here, and the batch axis added where it lacks.
        """
        return self._columns(module, x, y)


def kind_of(module: nn.Module) -> LayerKind | None:
    """The row of the table that ``module`` belongs to."""
    return next((kind for kind in KINDS if isinstance(module, kind.types)), None)


def input_of(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """What a layer was called on, by position or as ``input=``."""
    return args[0] if args else kwargs["input"]


# Convolutions ---------------------------------------------------------------------------------------------


def _convolution_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    return weight.reshape(module.groups, module.out_channels // module.groups, -1)


def _convolution_unmatrix(module: nn.Module, matrix: Tensor) -> Tensor:
    return matrix.reshape(module.out_channels, module.in_channels // module.groups, *module.kernel_size)


def _convolution_columns(module: nn.Module, x: Tensor, y: Tensor | None) -> Columns:
    x, y = _batched(module, x, y)
    x, padding = padded_input(module, x)
    return _lifted(x, y, module.kernel_size, module.stride, padding, module.dilation, module.groups)


def _batched(module: nn.Module, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if x.dim() == len(module.kernel_size) + 1:
        return x.unsqueeze(0), None if y is None else y.unsqueeze(0)
    return x, y


def _lifted(x: Tensor, y: Tensor | None, *geometry) -> Columns:
    """The columns of a convolution; a one-dimensional one gets a height of 1."""
    kernel, stride, padding, dilation, groups = geometry
    if x.dim() == 3:
        x, y = x.unsqueeze(2), None if y is None else y.unsqueeze(2)
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    return Columns(x, y, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups)


# Transposed convolutions: plain ones of the zero-stuffed input with the kernel turned round ---------------


def _transposed_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    groups, rows = module.groups, module.out_channels // module.groups
    turned = weight.flip(tuple(range(2, weight.dim())))
    return turned.reshape(groups, -1, rows, *module.kernel_size).transpose(1, 2).reshape(groups, rows, -1)


def _transposed_unmatrix(module: nn.Module, matrix: Tensor) -> Tensor:
    groups, rows, inputs = (
        module.groups,
        module.out_channels // module.groups,
        module.in_channels // module.groups,
    )
    turned = matrix.reshape(groups, rows, inputs, *module.kernel_size).transpose(1, 2)
    weight = turned.reshape(module.in_channels, rows, *module.kernel_size)
    return weight.flip(tuple(range(2, weight.dim()))).contiguous()


def _transposed_columns(module: nn.Module, x: Tensor, y: Tensor | None) -> Columns:
    x, y = _batched(module, x, y)
    if any(s > 1 for s in module.stride):
        sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], module.stride, strict=True)]
        stuffed = x.new_zeros(*x.shape[:2], *sizes)
        stuffed[(..., *(slice(None, None, s) for s in module.stride))] = x
        x = stuffed
    ends: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
        before = reach - module.padding[axis]
        extra = module.output_padding[axis]
        if y is not None:  # a caller may have asked for an output size of its own
            extra = y.shape[2 + axis] - (x.shape[2 + axis] + 2 * before - reach)
        ends += [before, before + extra]
    ones = (1,) * len(module.kernel_size)
    padding = (0,) * len(ones)
    return _lifted(F.pad(x, ends), y, module.kernel_size, ones, padding, module.dilation, module.groups)


# Linear layers: 1x1 convolutions whose positions are all axes between the first and the last --------------


def _linear_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    return weight.unsqueeze(0)


def _linear_unmatrix(module: nn.Module, matrix: Tensor) -> Tensor:
    return matrix.squeeze(0)


def _linear_columns(module: nn.Module, x: Tensor, y: Tensor | None) -> Columns:
    ones = (1, 1)
    return Columns(_as_image(x), None if y is None else _as_image(y), ones, ones, (0, 0), ones, 1)


def _as_image(x: Tensor) -> Tensor:
    """Tensor[B, ..., features] as Tensor[B, features, 1, positions]."""
    if x.dim() == 1:
        x = x.unsqueeze(0)
    return x.reshape(x.shape[0], x.shape[1:-1].numel(), x.shape[-1]).transpose(1, 2).unsqueeze(2)


def _convolution(name: str, kind: type[nn.Module], spatial: int) -> LayerKind:
    functions = (_convolution_matrix, _convolution_unmatrix, _convolution_columns)
    return LayerKind(name, (kind,), 0, spatial, *functions)


def _transposed(name: str, kind: type[nn.Module], spatial: int) -> LayerKind:
    functions = (_transposed_matrix, _transposed_unmatrix, _transposed_columns)
    return LayerKind(name, (kind,), 1, spatial, *functions)


KINDS: tuple[LayerKind, ...] = (
    _convolution("Conv1d", nn.Conv1d, 1),
    _convolution("Conv2d", nn.Conv2d, 2),
    _convolution("Conv3d", nn.Conv3d, 3),
    _transposed("ConvTranspose1d", nn.ConvTranspose1d, 1),
    _transposed("ConvTranspose2d", nn.ConvTranspose2d, 2),
    _transposed("ConvTranspose3d", nn.ConvTranspose3d, 3),
    LayerKind("Linear", (nn.Linear,), 0, 0, _linear_matrix, _linear_unmatrix, _linear_columns),
)
