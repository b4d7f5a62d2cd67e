"""When blocks, stages and the network are learned, and what has to be computed anew afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bitsplit.calibration.piece import EnginePiece, learn
from bitsplit.calibration.replay import UnitCall
from bitsplit.calibration.task import EngineLayerTask
from bitsplit.errors import CalibrationError
from bitsplit.methods.tasks import Granularity
from bitsplit.network.joined import joined_units

if TYPE_CHECKING:
    from bitsplit.calibration.engine import Engine


class Learner:
    """Lets the methods of an engine's chain learn pieces larger than a layer.

    stages: the units of each; none where no method learns stages.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        if self._wanted("net") and engine.network.selected:
            raise CalibrationError(
                "unit='net' compares what the whole network gives; this one selects rows by their values, "
                "others when it is quantized: use unit='block'"
            )
        self.stages = joined_units(engine.network) if self._wanted("stage") else []

    def learn_units(self, call: UnitCall, names: set[str]) -> None:
        """The units ``names``, whose layers have been fitted, and the stages that end with them.

        ``call`` is at work.
        """
        for unit in self._engine.network.units:
            if unit.name in names:
                self._learn("block", [unit.name], unit.calls, unit.layers)
        for stage in self.stages:
            if stage[-1].name in names:
                layers = [layer for unit in stage for layer in unit.layers]
                self._learn("stage", [unit.name for unit in stage], stage[0].calls, layers)
                self._record_again([(unit.name, 0) for unit in stage[:-1]])
                self._engine.student_replay.start(call)

    def learn_network(self) -> None:
        """All layers at once, when everything has been fitted."""
        self._learn("net", [""], 1, list(self._engine.network.layers))

    def _wanted(self, granularity: Granularity) -> bool:
        return any(method.granularity == granularity for method in self._engine.methods)

    def _learn(
        self,
        granularity: Granularity,
        parts: Sequence[str],
        calls: int,
        layers: Sequence[str],
    ) -> None:
        if not self._wanted(granularity):
            return
        engine = self._engine
        tasks = [EngineLayerTask(engine, engine.network.layers[name]) for name in layers]
        piece = EnginePiece(engine, parts, calls, tasks)
        modules = {task.name: task.module for task in tasks}
        engine.student_replay.unsettle()
        for number, method in enumerate(engine.methods):
            if method.granularity == granularity:
                engine.once(f"{piece.name} learned {number}", modules, partial(learn, method, piece))

    def _record_again(self, calls: Sequence[UnitCall]) -> None:
        """Keep what finished calls of the student give now."""
        replay = self._engine.student_replay
        replay.forget(calls, len(self._engine.data))
        for call in calls:
            replay.start(call)
            with replay.recording():
                for index, batch in self._engine.batches():
                    replay.record(index, batch)
            replay.finish()
