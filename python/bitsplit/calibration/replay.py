"""Run a model again and again up to a layer, without computing finished units again.

No graph is needed: the model's own code runs, but the units that are finished answer with the outputs they
gave before.  Outputs that no later unit reads are not kept; zeros of their shape stand for them.  Inside of
the unit at work the layers that are finished answer in the same way, as far as there is memory for that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from bitsplit.calibration.features import FeatureStore
from bitsplit.device import device_of, fresh
from bitsplit.network.buffers import KeptBuffers
from bitsplit.network.selections import Selections

UnitCall = tuple[str, int]  # a unit's module path and the number of its call within one forward


class Stop(BaseException):
    """Ends a forward early; no ``except Exception`` of the model's own code may swallow it."""


class Replay:
    """One model whose forward skips the unit calls that have been recorded.

    forward: runs one batch through a model.  name: tells this model's features apart in the shared ``store``.
    inside: the names of the units called within a unit call, once a call: counted when that one is skipped.
    seed: what the model itself draws at random follows from it and the number of the batch.
    selections: what it selects; None where it selects nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[nn.Module, Any], Any],
        store: FeatureStore,
        name: str,
        inside: Mapping[UnitCall, list[str]] | None = None,
        seed: int = 0,
        selections: Selections | None = None,
    ) -> None:
        self.model = model
        self._seed = seed
        self._selections = selections
        self._forward = forward
        self._store = store
        self._name = name
        self._inside = inside or {}
        self._buffers: KeptBuffers | None = None
        self._finished: dict[UnitCall, bool] = {}  # -> still read by somebody
        self._calls: Counter[str] = Counter()
        self._index = 0
        self._at_work: UnitCall | None = None
        self._recording = False
        self._settled: set[str] = set()  # layers inside of the unit at work
        self._layer_calls: Counter[str] | None = None  # while the unit call at work runs
        self._layer_outputs: dict[int, list[Hashable]] = defaultdict(list)

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    def keep_buffers(self) -> None:
        """From now on every run starts with the buffers that the model has now."""
        self._buffers = KeptBuffers(self.model)

    def restore_buffers(self) -> None:
        """Undo what runs, of this or of others, have done to the buffers that are kept."""
        if self._buffers is not None:
            self._buffers.restore()

    def start(self, call: UnitCall, settled: Iterable[str] = ()) -> None:
        """``call`` is at work from now on; the layers ``settled`` inside of it do not change any more."""
        self._at_work = call
        self._settled = set(settled)

    def settle(self, layer: str) -> None:
        """``layer``, inside of the unit at work, does not change any more."""
        self._settled.add(layer)

    def unsettle(self) -> None:
        """The layers inside of the unit at work will change after all."""
        self._settled.clear()

    def run(self, index: int, batch: Any, paired: bool = True) -> Any:
        """Batch number ``index`` through the model; ``None`` when a hook ended it with ``Stop``.

        Without ``paired`` the model selects for itself.
        """
        self.restore_buffers()
        self._calls.clear()
        self._layer_calls = None
        self._index = index
        cards = [self.device.index] if self.device.type == "cuda" else []
        alike = self._selections is not None and paired
        selecting = self._selections.of(index) if alike else nullcontext()
        with torch.random.fork_rng(cards), selecting:
            torch.manual_seed(self._seed + index)
            try:
                return self._forward(self.model, fresh(batch))  # the other model gets this batch too
            except Stop:
                return None

    def record(self, index: int, batch: Any) -> bool:
        """Run up to and including the unit call at work and keep its output for batch ``index``.

        False when this batch does not come to that call.
        """
        self._recording = True
        self.run(index, batch)
        self._store.drop(self._layer_outputs.pop(index, ()))
        return not self._recording

    def finish(self) -> None:
        """From now on the call at work answers from the store (every batch has been recorded)."""
        self._finished[self._at_work] = True
        self._at_work = None
        self._settled.clear()

    def retire(self, call: UnitCall, batches: int) -> None:
        """Nobody reads the output of ``call`` any more: free it."""
        self._finished[call] = False
        for index in range(batches):
            self._store.release(self._key(call, index))

    def forget(self, calls: Iterable[UnitCall], batches: int) -> None:
        """``calls`` have changed: they are not finished any more."""
        for call in calls:
            del self._finished[call]
            self._store.drop(self._key(call, index) for index in range(batches))

    def output(self, call: UnitCall, index: int) -> Any:
        """What ``call`` gave for batch ``index``."""
        return self._store.get(self._key(call, index))

    def _key(self, call: UnitCall, index: int) -> tuple[str, str, int, int]:
        return (self._name, *call, index)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """While active, what is finished answers from the store."""
        # a GPU computes a layer's output faster than it is brought from host memory
        settled = self._settled if self.device.type == "cpu" else set()
        units = {name for name, _ in [*self._finished, *filter(None, [self._at_work])]}
        modules = {name: self.model.get_submodule(name) for name in {*settled, *units}}
        own = {name: vars(module)["forward"] for name, module in modules.items() if "forward" in vars(module)}
        for name in settled:
            modules[name].forward = self._remembering(name, modules[name].forward)
        for name in units:
            modules[name].forward = self._answering(name, modules[name].forward)
        try:
            yield
        finally:
            for name, module in modules.items():
                del module.forward
                if name in own:  # somebody had given this object a forward of its own
                    module.forward = own[name]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """``skipping``, and every forward ends with the unit call at work."""
        module = self.model.get_submodule(self._at_work[0])
        with self.skipping():
            # a hook, so that other hooks of the recorded unit still see its output
            stop = module.register_forward_hook(self._stop_when_recorded)
            try:
                yield
            finally:
                stop.remove()

    def _stop_when_recorded(self, *_: Any) -> None:
        if not self._recording:
            raise Stop

    def _answering(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The ``forward`` of a unit that does not compute what is finished."""

        def answer(*args: Any, **kwargs: Any) -> Any:
            call = (name, self._calls[name])
            self._calls[name] += 1
            if call in self._finished:
                self._calls.update(self._inside.get(call, ()))
                key = self._key(call, self._index)
                return self._store.get(key) if self._finished[call] else self._store.shape_only(key)
            if call != self._at_work:
                return forward(*args, **kwargs)
            self._layer_calls = Counter()
            output = forward(*args, **kwargs)
            self._layer_calls = None
            if self._recording:
                self._store.put(self._key(call, self._index), output, self.device)
                self._recording = False
            return output

        return answer

    def _remembering(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The ``forward`` of a layer that computes once for every batch inside of the unit call at work."""

        def answer(*args: Any, **kwargs: Any) -> Any:
            if self._layer_calls is None:
                return forward(*args, **kwargs)
            key = (*self._key((name, self._layer_calls[name]), self._index), self._at_work)
            self._layer_calls[name] += 1
            if key in self._layer_outputs[self._index]:
                return self._store.get(key)
            output = forward(*args, **kwargs)
            if self._store.offer(key, output, self.device):
                self._layer_outputs[self._index].append(key)
            return output

        return answer
