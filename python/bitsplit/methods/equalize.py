"""Cross-layer equalisation (Data-free quantization, ICCV 2019).

Two layers in a row with a positively homogeneous function between them (ReLU, pooling, none) compute the
same when channel i of the first is divided by s_i and the second's reading of it multiplied by s_i.  With
s_i = sqrt(r1_i / r2_i), where r are the largest magnitudes of the first's rows and of the second's columns,
both have equal ranges.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from bitsplit.methods.base import Method
from bitsplit.methods.registry import register
from bitsplit.methods.tasks import Run
from bitsplit.network import kind_of
from bitsplit.network.pairs import LayerPair, homogeneous_pairs


@register
class Equalize(Method):
    """A step in front of a weight method; sweeps over all pairs until no scale changes by more than 1 %."""

    name = "equalize"
    sweeps: int = Field(20, ge=1)

    def prepare(self, run: Run) -> None:
        pairs = homogeneous_pairs(run.network)
        for _ in range(self.sweeps):
            largest = 1.0
            for pair in pairs:
                scale = _equalising_scale(run.teacher, pair)
                for model in (run.teacher, run.student):
                    _rescale(model, pair, scale)
                largest = max(largest, float(torch.maximum(scale, 1 / scale).max()))
            if largest < 1.01:
                break


def _equalising_scale(model: nn.Module, pair: LayerPair) -> Tensor:
    rows = _rows(model.get_submodule(pair.first)).abs().amax(1)
    columns = _columns(model.get_submodule(pair.second)).abs().amax((1, 3)).flatten()
    scale = torch.sqrt(rows / columns)
    return torch.where((rows > 0) & (columns > 0), scale, torch.ones_like(scale))


def _rescale(model: nn.Module, pair: LayerPair, scale: Tensor) -> None:
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    _set(first, _rows(first) / scale.unsqueeze(1))
    columns = _columns(second)
    _set(second, columns * scale.view(columns.shape[0], 1, columns.shape[2], 1))
    outputs = [first.bias]
    if pair.norm is not None:  # what it remembers of the first layer's output
        norm = model.get_submodule(pair.norm)
        outputs += [norm.weight, norm.bias]
    for values in outputs:
        if values is not None:
            values.data.div_(scale.to(values.dtype))


def _rows(layer: nn.Module) -> Tensor:
    """The weight as Tensor[output channels, columns]."""
    return kind_of(layer).matrix(layer, layer.weight.detach()).flatten(0, 1)


def _columns(layer: nn.Module) -> Tensor:
    """The weight as Tensor[groups, rows, input channels of a group, kernel positions]."""
    matrix = kind_of(layer).matrix(layer, layer.weight.detach())
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels // layer.groups
    return matrix.unflatten(2, (inputs, -1))


def _set(layer: nn.Module, values: Tensor) -> None:
    kind = kind_of(layer)
    matrix = kind.matrix(layer, layer.weight.detach())
    layer.weight.data.copy_(kind.unmatrix(layer, values.reshape(matrix.shape).to(layer.weight.dtype)))
