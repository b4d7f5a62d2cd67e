"""A piece of the network while it is learned: what ``bitsplit.methods.tasks.Piece`` promises."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitsplit.calibration.passes import seed_of
from bitsplit.calibration.piece_calls import CallRecorder, PieceCall
from bitsplit.calibration.replay import Replay
from bitsplit.calibration.rows import RowTable
from bitsplit.device import device_of
from bitsplit.errors import CalibrationError
from bitsplit.methods.base import Method
from bitsplit.methods.tasks import Sample
from bitsplit.ops.loss import class_divergence
from bitsplit.quantizers import ActivationQuantizer
from bitsplit.report.results import PieceResult

if TYPE_CHECKING:
    from bitsplit.calibration.engine import Engine
    from bitsplit.calibration.task import EngineLayerTask

INDEPENDENT = 1e-3  # relative difference of a row beside other neighbours that is but rounding


class EnginePiece:
    """Modules of the student (``parts``, each called with what the one before gave) and their twins.

    A layer, a block, the blocks of a stage; the network itself is the part "".
    """

    def __init__(
        self, engine: Engine, parts: Sequence[str], calls: int, layers: Sequence[EngineLayerTask]
    ) -> None:
        self._engine = engine
        self._parts = parts
        self._calls = calls
        self.name = parts[0] or "network" if len(parts) == 1 else f"{parts[0]} to {parts[-1]}"
        self.layers = tuple(layers)
        self.seed = seed_of(engine.seed, self.name)
        self.module = self._joined(engine.student)
        self.device = device_of(self.module)
        self._twin = self._joined(engine.teacher)

    def _joined(self, model: nn.Module) -> nn.Module:
        modules = [model.get_submodule(part) for part in self._parts]
        return modules[0] if len(modules) == 1 else Joined(*modules)

    def _ends(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        return model.get_submodule(self._parts[0]), model.get_submodule(self._parts[-1])

    @property
    def quantizers(self) -> list[ActivationQuantizer]:
        """Those that act inside of it or on what it is called with, and that no earlier piece has."""
        names = {layer.name for layer in self.layers}
        rows = [self._engine.plan.layer(layer.name) for layer in self.layers]
        owned = [
            layer.module.input_quantizer
            for layer, row in zip(self.layers, rows, strict=True)
            if self._engine.plan.quantizer_owner(row) in names
            and (row.argument is None or row.unit in self._parts or "" in self._parts)
            and layer.module.input_quantizer.is_fitted
        ]
        return list(dict.fromkeys(owned))

    def channels(self, output: Tensor) -> int:
        """As many as the layer that runs last gives, where an axis of the output is as long.

        Otherwise as long as that axis which is the channels' in the layer.
        """
        own, axis = self._channels
        if own in output.shape[1:]:
            return own
        return output.shape[axis] if output.dim() >= -axis else 1

    @cached_property
    def _channels(self) -> tuple[int, int]:
        """Of the layer that runs last: how many, and on which axis of its output."""
        last = self.layers[-1]
        return last.weight.shape[:2].numel(), -1 - last.kind.spatial

    def run(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The piece's output, the student as it is."""
        return self.module(*args, **kwargs)

    def responses(self, paired: bool) -> Iterator[tuple[Any, Any]]:
        """What both networks give for every batch, the student with the piece as it is now.

        paired: the student selects the rows that the float network selects; if not, units that are finished
        compute again, because what they gave belongs to those rows.
        """
        engine = self._engine
        own = engine.selects and not paired
        skipping = nullcontext() if own else self._skipping(engine.student_replay)
        with skipping, self._skipping(engine.teacher_replay):
            for index, batch in engine.batches():
                yield engine.student_replay.run(index, batch, paired=not own), engine.wanted(index, batch)

    def iterations(self, count: int) -> Iterator[int]:
        """0, 1, ... count - 1, with progress."""
        yield from self._engine.progress.iterations(self.name, count)

    def show(self, loss: Tensor) -> None:
        """Let the user see the loss of the iteration at work."""
        self._engine.progress.loss(loss)

    @contextmanager
    def samples(self, *, float_inputs: bool = False, fisher: bool = False) -> Iterator[RowTable]:
        """All calls over all calibration batches, to be drawn from.

        float_inputs: with the inputs in the float network too.  fisher: with weights.
        """
        table = self._table()
        try:
            for student, teacher, weights in self._visit(fisher):
                for got, wanted, weight in zip(student, teacher, weights, strict=True):
                    inputs = (wanted.args, wanted.kwargs) if float_inputs else None
                    table.add(Sample(got.args, got.kwargs, wanted.output, weight, inputs))
            if table.mean_weight == 0:
                raise CalibrationError(
                    f"{self.name}: loss='fisher' needs class scores that its output changes smoothly, "
                    "got gradients that are all zero; use loss='mse'"
                )
            yield table
        finally:
            table.close()

    def _visit(self, fisher: bool) -> Iterator[tuple[list[PieceCall], list[PieceCall], list[Tensor | None]]]:
        """For every batch the student's calls, the teacher's, and the weights of the errors."""
        engine = self._engine
        student, teacher = CallRecorder(self._calls, whole=fisher), CallRecorder(self._calls, whole=fisher)
        with (
            self._skipping(engine.student_replay),
            self._skipping(engine.teacher_replay),
            student.watching(*self._ends(engine.student), outputs=fisher),
            teacher.watching(*self._ends(engine.teacher), outputs=True),
        ):
            for index, batch in engine.batches():
                wanted = engine.teacher_replay.run(index, batch)
                with torch.set_grad_enabled(fisher):
                    got = engine.student_replay.run(index, batch)
                if len(student.calls) != len(teacher.calls):
                    raise CalibrationError(
                        f"{self.name}: called {len(student.calls)} times quantized, "
                        f"{len(teacher.calls)} times in float"
                    )
                weights = [None] * len(student.calls)
                if fisher and student.calls:
                    weights = self._squared_gradients([call.output for call in student.calls], got, wanted)
                if student.calls:
                    yield student.calls, teacher.calls, weights
                student.calls.clear()
                teacher.calls.clear()

    def _skipping(self, replay: Replay) -> AbstractContextManager[None]:
        """What comes before the piece answers from the store; the whole network computes all of its units."""
        return nullcontext() if "" in self._parts else replay.skipping()

    @torch.enable_grad()
    def _squared_gradients(self, outputs: list[Tensor], got: Any, wanted: Any) -> list[Tensor]:
        """Of the divergence of the network's class probabilities, with regard to the piece's outputs."""
        if not isinstance(got, Tensor) or got.dim() != 2 or got.shape[1] < 2:
            given = list(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise CalibrationError(
                f"{self.name}: loss='fisher' needs a network that gives class scores [images, classes] of "
                f"two classes or more, got {given}; use loss='mse'"
            )
        divergence = class_divergence(got, wanted)
        gradients = torch.autograd.grad(divergence, outputs, allow_unused=True, materialize_grads=True)
        return [gradient.square() for gradient in gradients]

    def _table(self) -> RowTable:
        visits = self._visit(fisher=False)
        calls = (call for _, calls, _ in visits for call in calls if call.output.numel() > 0)
        call = next(calls, None)
        visits.close()
        if call is None:
            raise CalibrationError(f"{self.name}: no calibration image reached it")
        rows = call.output.shape[0] if self._rows_are_independent(call) else None
        engine = self._engine
        capacity = len(engine.data) * self._calls * (rows or 1)
        return RowTable(engine.store, engine.student_replay.device, capacity, whole=rows is None)

    def _rows_are_independent(self, call: PieceCall) -> bool:
        """Whether the last row comes out the same beside a row of zeros instead of its own neighbours."""
        if call.output.dim() == 0:
            return False
        count = len(call.output)

        def other_neighbour(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dim() == 0 or len(leaf) != count:
                return leaf
            return torch.cat([leaf[-1:], torch.zeros_like(leaf[-1:])])

        args, kwargs = pytree.tree_map(other_neighbour, (call.args, call.kwargs))
        try:
            found = self._twin(*args, **kwargs)
        except Exception:  # the model's own code: it needs the shape of the whole batch
            return False
        expected = call.output[-1:]
        if found[:1].shape != expected.shape or len(found) != 2:
            return False
        difference = torch.linalg.vector_norm(found[:1] - expected)
        return bool(difference <= INDEPENDENT * torch.linalg.vector_norm(expected))


class Joined(nn.Sequential):
    """Modules in a row, of which the first may take several arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        first, *others = self
        output = first(*args, **kwargs)
        for module in others:
            output = module(output)
        return output


def learn(method: Method, piece: EnginePiece) -> list[PieceResult]:
    """Let ``method`` learn ``piece``; what came of it."""
    started = time.perf_counter()
    try:
        outcome = method.fit_piece(piece)
    except (ValueError, RuntimeError, TypeError) as error:
        raise CalibrationError(f"{piece.name}: {method.name} failed: {error}") from error
    if outcome is None:
        return []
    seconds = time.perf_counter() - started
    return [PieceResult(name=piece.name, method=method.name, seconds=seconds, **outcome._asdict())]
