"""Run a model again and again up to a layer, without computing finished units again.

No graph is needed: the model's own code runs, but the units that are finished answer with the outputs they
gave before.  Outputs that no later unit reads are not kept; zeros of their shape stand for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bitsplit.calibration.features import FeatureStore

UnitCall = tuple[str, int]  # a unit's module path and the number of its call within one forward


class Stop(BaseException):
    """Ends a forward early; no ``except Exception`` of the model's own code may swallow it."""


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of ``model`` lie."""
    return next(model.parameters()).device


class Replay:
    """One model whose forward skips the unit calls that have been recorded.

    forward: runs one batch through a model.  name: tells this model's features apart in the shared ``store``.
    inside: the names of the units called within a unit call, once a call: counted when that one is skipped.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[nn.Module, Any], Any],
        store: FeatureStore,
        name: str,
        inside: Mapping[UnitCall, list[str]] | None = None,
    ) -> None:
        self.model = model
        self._forward = forward
        self._store = store
        self._name = name
        self._inside = inside or {}
        self._finished: dict[UnitCall, bool] = {}  # -> still read by somebody
        self._calls: Counter[str] = Counter()
        self._index = 0
        self._recording: UnitCall | None = None

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    def run(self, index: int, batch: Any) -> Any:
        """Batch number ``index`` through the model; ``None`` when a hook ended it with ``Stop``."""
        self._calls.clear()
        self._index = index
        try:
            return self._forward(self.model, batch)
        except Stop:
            return None

    def record(self, index: int, batch: Any, call: UnitCall) -> bool:
        """Run up to and including unit call ``call`` and keep its output for batch ``index``.

        False when this batch does not come to that call.
        """
        self._recording = call
        self.run(index, batch)
        return self._recording is None

    def finish(self, call: UnitCall) -> None:
        """From now on ``call`` answers from the store (every batch has been recorded)."""
        self._finished[call] = True

    def retire(self, call: UnitCall, batches: int) -> None:
        """Nobody reads the output of ``call`` any more: free it."""
        self._finished[call] = False
        for index in range(batches):
            self._store.release(self._key(call, index))

    def output(self, call: UnitCall, index: int) -> Any:
        """What ``call`` gave for batch ``index``."""
        return self._store.get(self._key(call, index))

    def _key(self, call: UnitCall, index: int) -> tuple[str, str, int, int]:
        return (self._name, *call, index)

    @contextmanager
    def skipping(self, extra: UnitCall | None = None) -> Iterator[None]:
        """While active, finished units answer from the store; ``extra`` is a unit about to be recorded."""
        names = {name for name, _ in self._finished} | ({extra[0]} if extra else set())
        modules = {name: self.model.get_submodule(name) for name in names}
        own = {name: vars(module)["forward"] for name, module in modules.items() if "forward" in vars(module)}
        for name, module in modules.items():
            module.forward = self._answering(name, module.forward)
        # a hook, so that other hooks of the recorded unit still see its output
        stop = modules[extra[0]].register_forward_hook(self._stop_when_recorded) if extra else None
        try:
            yield
        finally:
            if stop is not None:
                stop.remove()
            for name, module in modules.items():
                del module.forward
                if name in own:  # somebody had given this object a forward of its own
                    module.forward = own[name]

    def _stop_when_recorded(self, *_: Any) -> None:
        if self._recording is None:
            raise Stop

    def _answering(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **kwargs: Any) -> Any:
            call = (name, self._calls[name])
            self._calls[name] += 1
            if call in self._finished:
                self._calls.update(self._inside.get(call, ()))
                key = self._key(call, self._index)
                return self._store.get(key) if self._finished[call] else self._store.shape_only(key)
            output = forward(*args, **kwargs)
            if call == self._recording:
                self._store.put(self._key(call, self._index), output, self.device)
                self._recording = None
            return output

        return answer
