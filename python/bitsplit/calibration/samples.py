"""Samples of the values that arrive at layers, for the methods that choose ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitsplit.calibration.passes import seed_of, visit
from bitsplit.errors import CalibrationError
from bitsplit.methods.statistics import InputSample
from bitsplit.network.layers import LayerKind, input_of, kind_of

if TYPE_CHECKING:
    from bitsplit.calibration.engine import Engine
    from bitsplit.calibration.task import EngineLayerTask


def collect_sample(
    engine: Engine, task: EngineLayerTask, limit: int, student: bool, per_channel: bool
) -> InputSample:
    """Up to about ``limit`` values of the layer's input, the same share of every batch, and its range.

    student: in the student, else in the teacher.
    """
    sampler = _Sampler(engine, task.name, task.kind, limit, per_channel)
    for index, inputs, exact in visit(engine, task, student=student, teacher=not student):
        sampler.add(index, [x for x, _ in (inputs if student else exact)])
    return sampler.sample()


def collect_samples(
    engine: Engine, names: Sequence[str], limit: int, student: bool
) -> dict[str, InputSample]:
    """The same for several layers in one pass, through the student as it is or through the teacher."""
    model = engine.student if student else engine.teacher
    layers = {name: model.get_submodule(name) for name in names}
    samplers = {name: _Sampler(engine, name, kind_of(layer), limit, False) for name, layer in layers.items()}
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            # what comes next may change it in place
            seen.setdefault(name, []).append(input_of(args, kwargs).detach().clone())

        return before

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(keep(name), with_kwargs=True).remove)
        for index, batch in engine.batches():
            engine.forward(model, index, batch)
            for name, inputs in seen.items():
                samplers[name].add(index, inputs)
            seen.clear()
    return {name: sampler.sample() for name, sampler in samplers.items()}


class _Sampler:
    """Gathers the sample of one layer, batch by batch."""

    def __init__(self, engine: Engine, name: str, kind: LayerKind, limit: int, per_channel: bool) -> None:
        self._seed, self._name, self._kind = engine.seed, name, kind
        self._per_batch = max(1, limit // len(engine.data))
        self._per_channel = per_channel
        self._parts: list[Tensor] = []
        self._lows: list[Tensor] = []
        self._highs: list[Tensor] = []

    def add(self, index: int, inputs: list[Tensor]) -> None:
        """The inputs of all calls of the layer in one batch."""
        for call, x in enumerate(inputs):
            if x.numel() == 0:
                continue
            rows = self._values_by_channel(x) if self._per_channel else x.reshape(-1, 1)
            self._lows.append(rows.amin(0))
            self._highs.append(rows.amax(0))
            quota = self._per_batch // (len(inputs) * rows.shape[1])
            self._parts.append(_take(rows, max(1, quota), seed_of(self._seed, self._name, index, call)))

    def sample(self) -> InputSample:
        if not self._parts:
            raise CalibrationError(f"{self._name}: no calibration image reached this layer")
        low, high = torch.stack(self._lows).amin(0), torch.stack(self._highs).amax(0)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise CalibrationError(
                f"{self._name}: its input holds NaN or Inf; something before it overflows on these images"
            )
        values = torch.cat(self._parts)
        return InputSample(values if self._per_channel else values.view(-1), low, high)

    def _values_by_channel(self, x: Tensor) -> Tensor:
        """Tensor[values, channels]."""
        x = x.movedim(-1 - self._kind.spatial, -1)
        return x.reshape(-1, x.shape[-1])


def _take(rows: Tensor, count: int, seed: int) -> Tensor:
    """``count`` random rows (with replacement), or all of them when there are no more."""
    if rows.shape[0] <= count:
        return rows.float()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(rows.shape[0], (count,), generator=generator)
    return rows[chosen.to(rows.device)].float()
