"""Walk the network in execution order and let the methods fit every layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitsplit.calibration.attaching import attach_quantizers
from bitsplit.calibration.checkpoint import Checkpoint
from bitsplit.calibration.features import FeatureStore
from bitsplit.calibration.forecast import forecast, kept_bytes
from bitsplit.calibration.learner import Learner
from bitsplit.calibration.memory import room_on_card
from bitsplit.calibration.piece import EnginePiece, learn
from bitsplit.calibration.progress import Progress
from bitsplit.calibration.replay import Replay, UnitCall
from bitsplit.calibration.responses import ResponseErrors
from bitsplit.calibration.samples import collect_samples
from bitsplit.calibration.schedule import unit_schedule
from bitsplit.calibration.task import EngineLayerTask
from bitsplit.data import Batches
from bitsplit.device import free_memory, to_device
from bitsplit.errors import CalibrationError, RecipeError
from bitsplit.methods.base import Method
from bitsplit.methods.statistics import InputSample
from bitsplit.methods.tasks import Inputs
from bitsplit.network import Network
from bitsplit.network.selections import Selections
from bitsplit.plan import Plan
from bitsplit.quantizers import align_biases
from bitsplit.report.results import LayerResult, PieceResult, QuantizationReport


class Engine:
    """One run: ``student`` is quantized unit by unit, ``teacher`` stays the folded float model."""

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
    ) -> None:
        self.network = network
        self.plan = plan
        self.methods = methods
        self.data = data
        self.seed = seed
        self.checkpoint = checkpoint
        self.store = FeatureStore(memory)
        self.teacher = teacher
        self.student = network.model
        self._learner = Learner(self)
        self.schedule = unit_schedule(network, self._learner.stages)
        units = dict.fromkeys(name for name, _ in self.schedule.calls)
        models = (teacher, network.model)
        self._selections = Selections(self.store, models, units) if network.selected else None
        self.teacher_replay, self.student_replay = (
            Replay(model, forward, self.store, name, self.schedule.inside, seed, self._selections)
            for model, name in zip(models, ("float", "quantized"), strict=True)
        )
        self._errors = {unit.name: ResponseErrors(unit.layers) for unit in network.units}
        self._seconds: dict[str, float] = {}  # that fitting a layer took
        self._pieces: list[PieceResult] = []
        self._all_alike = True  # every batch came to the unit calls that the observed one came to

    @property
    def images(self) -> int:
        return self.data.images

    @property
    def selects(self) -> bool:
        """Whether the network keeps or orders rows by their values."""
        return self._selections is not None

    @property
    def batch_count(self) -> int:
        return len(self.data)

    def tasks(self) -> list[EngineLayerTask]:
        """All layers that the plan quantizes, in execution order."""
        rows = (row for row in self.plan.layers if row.weights is not None or row.activations is not None)
        return [EngineLayerTask(self, self.network.layers[row.name]) for row in rows]

    def iterations(self, name: str, count: int) -> Iterator[int]:
        """0, 1, ... count - 1, with progress."""
        return self.progress.iterations(name, count)

    def show(self, loss: Tensor) -> None:
        """Let the user see the loss of the iteration at work."""
        self.progress.loss(loss)

    def batches(self) -> Iterator[tuple[int, Any]]:
        """The calibration batches with their numbers, on the device of the model."""
        for index, batch in enumerate(self.data):
            yield index, to_device(batch, self.student_replay.device)

    def forward(self, model: nn.Module, index: int, batch: Any) -> Any:
        """Batch number ``index`` through all of ``model``."""
        return (self.student_replay if model is self.student else self.teacher_replay).run(index, batch)

    def wanted(self, index: int, batch: Any) -> Any:
        """What the float network gives for batch number ``index``; computed once."""
        key = ("wanted", index)
        if key not in self.store:
            self.store.put(key, self.teacher_replay.run(index, batch), self.teacher_replay.device)
        return self.store.get(key)

    def input_samples(self, names: Sequence[str], limit: int, inputs: Inputs) -> dict[str, InputSample]:
        """Of every layer named up to about ``limit`` values of its input."""
        return collect_samples(self, names, limit, inputs == "quantized")

    @torch.no_grad()
    def run(self) -> QuantizationReport:
        """Fit everything."""
        started = time.perf_counter()
        try:
            for method in self.methods:
                self._named(method, method.prepare)
            self.teacher_replay.keep_buffers()
            self.student_replay.keep_buffers()  # not those of quantizers, which it has none of yet
            attach_quantizers(self.student, self.plan)
            with (
                Progress(len(self.network.layers), self._forecast()) as self.progress,
                self._selecting_alike(),
            ):
                self._walk()
                for method in self.methods:
                    self._named(method, method.finish)
            if self.plan.recipe.power_of_two:
                align_biases(self.student)
            self.student_replay.restore_buffers()
        finally:
            self.store.close()
        return QuantizationReport(
            plan=self.plan,
            layers=tuple(filter(None, (self._result(name) for name in self.network.layers))),
            pieces=tuple(self._pieces),
            seconds=time.perf_counter() - started,
            features={"forecast": self.store.reserved, "used": self.store.most},
            data={
                "images": self.data.images,
                "batches": len(self.data),
                "fingerprint": self.data.fingerprint,
            },
        )

    def _named(self, method: Method, act: Callable[[Engine], None]) -> None:
        """What a method does to the whole network; its errors tell its name."""
        try:
            act(self)
        except (ValueError, RuntimeError) as error:
            raise CalibrationError(f"{method.name} failed: {error}") from error

    def _forecast(self) -> str:
        """What the run will need, in words; refused when that is more than there is."""
        features = kept_bytes(self.network, self.schedule, self.methods, self.data)
        device = self.student_replay.device
        card = room_on_card(device)
        needed = forecast(self.network, self.plan, self.methods, features, card, self.store.budget)
        needed.check(free_memory(device))
        self.store.reserved = features
        return str(needed)

    @contextmanager
    def _selecting_alike(self) -> Iterator[None]:
        """While active, both models keep the rows of every batch that the float one keeps."""
        if self._selections is None:
            yield
            return
        with self._selections.watching():
            with self._selections.noting():
                for index, batch in self.batches():
                    self.teacher_replay.run(index, batch)
            yield

    def _walk(self) -> None:
        schedule = self.schedule
        fitted: set[str] = set()
        for position, call in enumerate(schedule.calls):
            units = {call[0], *schedule.inside.get(call, ())}
            new = units - fitted
            layers = self._in_order(new)
            fitted |= new
            self.teacher_replay.start(call, layers)
            self.student_replay.start(call)
            self._seconds |= {name: self._fit(name) for name in layers}
            self._learner.learn_units(call, new)
            self._advance([self._errors[unit] for unit in units if unit in self._errors])
            for name in layers:
                self.progress.done(self._result(name))
            self._retire(schedule.dead_after(position))
        self._learner.learn_network()

    def _in_order(self, units: set[str]) -> tuple[str, ...]:
        """The layers of units that are fitted next: before others those whose input the unit is called with.

        The quantizers there change what all layers inside read, also those that run earlier.
        """
        layers = [name for name, layer in self.network.layers.items() if layer.unit in units]
        return tuple(sorted(layers, key=lambda name: self.plan.layer(name).argument is None))

    def _fit(self, name: str) -> float:
        """Fit one layer, or bring it back from the checkpoint; the seconds it took."""
        started = time.perf_counter()
        self.progress.layer(name)
        layer_plan = self.plan.layer(name)
        if layer_plan.weights is not None or layer_plan.activations is not None:
            task = EngineLayerTask(self, self.network.layers[name])
            self.once(name, {name: task.module}, lambda: self._fit_with_methods(task))
            task.take_up_input_scales()  # those that came out of the checkpoint too
        self.student_replay.settle(name)
        return time.perf_counter() - started

    def once(self, key: str, layers: dict[str, nn.Module], work: Callable[[], list[PieceResult]]) -> None:
        """Do ``work``, which changes ``layers``, or bring back what came of it from the checkpoint."""
        saved = None if self.checkpoint is None else self.checkpoint.restore(key, layers)
        pieces = work() if saved is None else [PieceResult(**facts) for facts in saved["pieces"]]
        if self.checkpoint is not None and saved is None:
            self.checkpoint.save(key, layers, {"pieces": [piece.model_dump() for piece in pieces]})
        self._pieces += pieces

    def _fit_with_methods(self, task: EngineLayerTask) -> list[PieceResult]:
        pieces: list[PieceResult] = []
        for method in self.methods:
            try:
                method.fit_layer(task)
                if method.granularity == "layer":
                    pieces += learn(method, EnginePiece(self, [task.name], task.calls, [task]))
            except (ValueError, RuntimeError, TypeError, IndexError) as error:
                raise CalibrationError(f"{task.name}: {method.name} failed: {error}") from error
        for what in ("weight", "input"):
            quantizer = getattr(task.module, f"{what}_quantizer", None)
            if what == "input" and any(method.defers_inputs for method in self.methods):
                continue
            if quantizer is not None and not quantizer.is_fitted:
                chain = ", ".join(method.name for method in self.methods)
                raise RecipeError(f"{task.name}: no method of the chain ({chain}) fits its {what} quantizer")
        return pieces

    def _advance(self, errors: Sequence[ResponseErrors]) -> None:
        """Keep the outputs of the unit call at work, of both models, for all batches; compare its layers."""
        with ExitStack() as active:
            for found in errors:  # first, so that their hooks come before the stop
                active.enter_context(found.watching(self.teacher, self.student))
            active.enter_context(self.teacher_replay.recording())
            active.enter_context(self.student_replay.recording())
            for index, batch in self.batches():
                self._all_alike &= self.teacher_replay.record(index, batch)
                self._all_alike &= self.student_replay.record(index, batch)
                for found in errors:
                    found.next_batch()
        self.teacher_replay.finish()
        self.student_replay.finish()

    def _result(self, name: str) -> LayerResult | None:
        """What came of a layer in the calls so far; None when it stays float."""
        row = self.plan.layer(name)
        if row.weights is None and row.activations is None:
            return None
        facts = {key: getattr(row, key) for key in ("name", "kind", "unit", "weights", "activations")}
        error = self._errors[row.unit].relative(name)
        return LayerResult(**facts, error=error, seconds=self._seconds[name])

    def _retire(self, calls: list[UnitCall]) -> None:
        if not self._all_alike:  # what the observed forward read says nothing about the other batches
            return
        for call in calls:
            self.teacher_replay.retire(call, len(self.data))
            self.student_replay.retire(call, len(self.data))
