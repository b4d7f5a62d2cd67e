"""A layer while it is being fitted: what ``bitsplit.methods.tasks.LayerTask`` promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bitsplit.calibration.passes import collect_mean_error, collect_statistics
from bitsplit.calibration.samples import collect_sample
from bitsplit.methods.statistics import InputSample, Statistics
from bitsplit.methods.tasks import Inputs, View
from bitsplit.network.layers import LayerKind, kind_of
from bitsplit.quantizers import ActivationQuantizer, Grid, set_weight

if TYPE_CHECKING:
    from bitsplit.calibration.engine import Engine
    from bitsplit.network import Layer


class EngineLayerTask:
    """One layer of the student, its twin in the teacher, and passes over the calibration data."""

    def __init__(self, engine: Engine, layer: Layer) -> None:
        self._engine = engine
        self.calls = layer.calls
        self.name = layer.name
        self.module: nn.Module = engine.student.get_submodule(layer.name)
        self.twin: nn.Module = engine.teacher.get_submodule(layer.name)
        self.kind: LayerKind = kind_of(self.module)
        self.seed = engine.seed
        self._statistics: dict[tuple[str, int | None, int], tuple[Statistics, ...]] = {}

    @property
    def weight(self) -> Tensor:
        matrix = self.kind.matrix(self.twin, self.twin.weight.detach())
        quantizer = getattr(self.module, "input_quantizer", None)
        if quantizer is None or not quantizer.is_fitted or not quantizer.is_per_channel:
            return matrix
        inputs = quantizer.scale.numel() // matrix.shape[0]  # of one group
        scale = quantizer.scale.view(matrix.shape[0], 1, inputs, 1)
        return (matrix.unflatten(2, (inputs, -1)) * scale).flatten(2)

    @property
    def quantized_weight(self) -> Tensor:
        return self.kind.matrix(self.module, self.module.weight.detach())

    @property
    def bias(self) -> Tensor | None:
        return None if self.twin.bias is None else self.twin.bias.detach()

    @property
    def weight_grid(self) -> Grid | None:
        quantizer = getattr(self.module, "weight_quantizer", None)
        return None if quantizer is None else quantizer.grid

    @property
    def is_fitted(self) -> bool:
        quantizer = getattr(self.module, "weight_quantizer", None)
        return quantizer is not None and quantizer.is_fitted

    @property
    def input_quantizer(self) -> ActivationQuantizer | None:
        quantizer = getattr(self.module, "input_quantizer", None)
        return None if quantizer is None or quantizer.is_fitted else quantizer

    def statistics(self, inputs: Inputs, patches: int | None = None, view: View | None = None) -> Statistics:
        return self._collected(inputs, patches, 1, view)[0]

    def halves(self, inputs: Inputs, view: View | None = None) -> tuple[Statistics, Statistics]:
        return self._collected(inputs, None, 2, view)

    def _collected(
        self, inputs: Inputs, patches: int | None, parts: int, view: View | None
    ) -> tuple[Statistics, ...]:
        """Kept for whoever asks again, but for views."""
        key = (inputs, patches, parts)
        if view is None and key in self._statistics:
            return self._statistics[key]
        found = collect_statistics(self._engine, self, inputs == "quantized", patches, parts, view)
        if view is None:
            self._statistics[key] = found
        return found

    def mean_error(self) -> Tensor:
        return collect_mean_error(self._engine, self)

    def input_sample(self, limit: int, inputs: Inputs, per_channel: bool = False) -> InputSample:
        return collect_sample(self._engine, self, limit, inputs == "quantized", per_channel)

    @torch.no_grad()
    def take_up_input_scales(self) -> None:
        quantizer = getattr(self.module, "input_quantizer", None)
        if quantizer is None or not quantizer.is_fitted or not quantizer.is_per_channel:
            return
        for reader in self._engine.tasks():
            shares = getattr(reader.module, "input_quantizer", None) is quantizer
            if shares and reader.weight_grid is not None and not reader.is_fitted:
                reader.module.weight.copy_(reader.kind.unmatrix(reader.module, reader.weight))

    def store(self, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> None:
        codes = self.kind.unmatrix(self.module, codes)
        set_weight(self.module, codes, scale, zero_point)

    def store_bias(self, bias: Tensor) -> None:
        bias = bias.reshape(-1).to(self.module.weight.dtype)
        if self.module.bias is None:
            self.module.bias = nn.Parameter(bias.clone(), requires_grad=self.module.weight.requires_grad)
        else:
            self.module.bias.data.copy_(bias)
