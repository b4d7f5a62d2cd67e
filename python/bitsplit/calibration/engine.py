"""Walk the network in execution order and let the methods fit every layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitsplit.calibration.checkpoint import Checkpoint
from bitsplit.calibration.features import FeatureStore
from bitsplit.calibration.progress import Progress
from bitsplit.calibration.replay import Replay, UnitCall
from bitsplit.calibration.schedule import unit_schedule
from bitsplit.calibration.task import EngineLayerTask
from bitsplit.data import Batches
from bitsplit.errors import BitsplitError
from bitsplit.methods.base import Method
from bitsplit.network import Network
from bitsplit.plan import Plan
from bitsplit.quantizers import prepare
from bitsplit.report.results import LayerResult


class Engine:
    """One quantization run: ``student`` is quantized unit by unit, ``teacher`` stays the folded float model."""

    def __init__(
        self,
        network: Network,
        teacher: nn.Module,
        plan: Plan,
        methods: list[Method],
        data: Batches,
        forward: Callable[[nn.Module, Any], Any],
        *,
        seed: int,
        memory: int,
        checkpoint: Checkpoint | None,
        scratch: Path | None = None,
    ) -> None:
        self.network = network
        self.plan = plan
        self.methods = methods
        self.data = data
        self.forward = forward
        self.seed = seed
        self.checkpoint = checkpoint
        self.store = FeatureStore(memory, scratch)
        self.teacher = Replay(teacher, forward, self.store, "float")
        self.student = Replay(network.model, forward, self.store, "quantized")
        self.results: list[LayerResult] = []

    @property
    def images(self) -> int:
        return self.data.images

    def batches(self) -> Iterator[Any]:
        """The calibration batches on the device of the model."""
        device = self.student.device
        for batch in self.data:
            yield pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)

    @torch.no_grad()
    def run(self) -> list[LayerResult]:
        """Fit everything; results in execution order."""
        try:
            for method in self.methods:
                method.prepare(self)
            prepare(self.network.model, self.plan)
            self._walk()
            for method in self.methods:
                method.finish(self)
        finally:
            self.store.close()
        return self.results

    def _walk(self) -> None:
        schedule = unit_schedule(self.network, self.forward, next(self.batches()))
        units = {unit.name: unit for unit in self.network.units}
        fitted: set[str] = set()
        with Progress(sum(len(unit.layers) for unit in self.network.units)) as progress:
            for position, call in enumerate(schedule.calls):
                if call[0] not in fitted:
                    fitted.add(call[0])
                    for name in units[call[0]].layers:
                        progress.layer(name)
                        self._fit(name)
                        progress.done(self.results[-1] if self.results else None)
                if position + 1 < len(schedule.calls):
                    self._advance(call)
                    self._retire(schedule.dead_after(position))

    def _fit(self, name: str) -> None:
        started = time.perf_counter()
        layer_plan = self.plan.layer(name)
        if layer_plan.weights is None and layer_plan.activations is None:
            return
        task = EngineLayerTask(self, self.network.layers[name])
        if self.checkpoint is None or not self.checkpoint.restore(name, task.module):
            self._fit_with_methods(task)
        self.results.append(
            LayerResult(
                name=name,
                kind=layer_plan.kind,
                unit=layer_plan.unit,
                weights=layer_plan.weights,
                activations=layer_plan.activations,
                error=task.relative_error(),
                seconds=time.perf_counter() - started,
            )
        )

    def _fit_with_methods(self, task: EngineLayerTask) -> None:
        for method in self.methods:
            try:
                method.fit_layer(task)
            except BitsplitError:
                raise
            except (ValueError, RuntimeError) as error:
                raise BitsplitError(f"{task.name}: {method.name} failed: {error}") from error
        if self.checkpoint is not None:
            self.checkpoint.save(task.name, task.module)

    def _advance(self, call: UnitCall) -> None:
        """Keep the outputs of a finished unit call, of both models, for all batches."""
        for replay in (self.teacher, self.student):
            with replay.skipping(extra=call):
                for index, batch in enumerate(self.batches()):
                    replay.record(index, batch, call)
            replay.finish(call)

    def _retire(self, calls: list[UnitCall]) -> None:
        for call in calls:
            self.teacher.retire(call, len(self.data))
            self.student.retire(call, len(self.data))
