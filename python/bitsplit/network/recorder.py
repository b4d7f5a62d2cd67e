"""Watch one forward: a dispatch mode sees every operation, hooks see every module call."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from bitsplit.data.batches import count_images
from bitsplit.device import fresh
from bitsplit.errors import ModelError
from bitsplit.network.record import LEAVES_TORCH, Call, Op, Origin, Record, Ref, Value, base_name
from bitsplit.network.running import Step, attempt, default_step, output_tensors, refuse_unseeable, unchanged


def record_forward(model: nn.Module, batch: Any, step: Step = default_step) -> Record:
    """The record of ``step(model, batch)`` in evaluation mode; the model is left as it was."""
    refuse_unseeable(model)
    batch = fresh(batch)
    recorder = _Recorder(model, batch)
    with unchanged(model), torch.no_grad(), recorder.hooks(), recorder, _Departures(recorder):
        output = attempt(model, batch, step)
        recorder.record.outputs = recorder.read_all(output_tensors(output))
    if not recorder.record.calls:
        raise ModelError("the step ran no module of the model")
    return recorder.record


class _Departures(TorchFunctionMode):
    """Notes as operations what hands values to code that is not torch's; no operation of torch does that."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.numpy, Tensor.tolist, Tensor.__array__):
            self._recorder.note_departure(args[0])
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Builds the record.

    A tensor's value is looked up by the tensor object (weakly, so no activation is kept alive) together with
    the number of writes its memory had seen when the value was noted: after writes through other views, the
    value is joined with what was written.
    """

    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__()
        self.record = Record()
        self._model = model
        self._stack: list[int] = []
        self._call_counts: Counter[str] = Counter()
        self._noted: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._written: defaultdict[int, list[int]] = defaultdict(list)  # memory -> values, in order
        self._overwritten: Counter[int] = Counter()  # memory -> writes up to the last one to all of it
        self._makers: dict[int, int] = {}  # memory -> the operation that made it
        self._register_sources(batch)

    def _register_sources(self, batch: Any) -> None:
        for name, tensor in self._model.named_parameters():
            self._note(tensor, self._new_value(tensor, "parameter", name))
        for name, tensor in self._model.named_buffers():
            self._note(tensor, self._new_value(tensor, "buffer", name))
        for path, module in self._model.named_modules():
            for name, attribute in vars(module).items():
                if isinstance(attribute, Tensor) and self._noted.get(attribute) is None:
                    self._note(attribute, self._new_value(attribute, "buffer", f"{path}.{name}"))
        inputs = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
        for tensor in inputs:
            self._note(tensor, self._new_value(tensor, "input"))
        self.record.batch_size = max(1, count_images(batch))

    # Values of tensors

    def _new_value(self, tensor: Tensor, origin: str, name: str = "", producer: int | None = None) -> int:
        self.record.values.append(Value(tuple(tensor.shape), tensor.dtype, origin, name, producer))
        return len(self.record.values) - 1

    def _note(self, tensor: Tensor, value: int) -> None:
        self._noted[tensor] = (value, len(self._written[_memory_of(tensor)]))

    def read(self, tensor: Tensor, otherwise: Origin = "unknown") -> int:
        """The value ``tensor`` holds now; one never seen before comes from ``otherwise``."""
        noted = self._noted.get(tensor)
        if noted is None:
            value = self._new_value(tensor, otherwise)
            self._note(tensor, value)
            return value
        value, seen = noted
        written = self._written[_memory_of(tensor)]
        if len(written) == seen:
            return value
        whole = self._overwritten[_memory_of(tensor)] - 1
        inputs = tuple(written[whole:]) if whole >= seen else (value, *written[seen:])
        joined = self._new_value(tensor, "op", producer=len(self.record.ops))
        self._append_op("alias", tuple(Ref(v) for v in inputs), {}, inputs, (joined,))
        self._note(tensor, joined)
        return joined

    def read_all(self, tree: Any) -> tuple[int, ...]:
        """The values of all tensors in ``tree``."""
        return tuple(self.read(leaf) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))

    def note_departure(self, tensor: Tensor) -> None:
        """The values of ``tensor`` leave torch."""
        value = self.read(tensor)
        self._append_op(LEAVES_TORCH, (Ref(value),), {}, (value,), ())

    def _write(self, tensor: Tensor, value: int) -> None:
        memory = _memory_of(tensor)
        self._written[memory].append(value)
        if tensor.numel() * tensor.element_size() == _bytes_of(tensor):
            self._overwritten[memory] = len(self._written[memory])
        self._note(tensor, value)

    def _append_op(
        self, name: str, args: tuple, kwargs: dict, inputs: tuple, outputs: tuple, overwritten: tuple = ()
    ) -> None:
        call = self._stack[-1] if self._stack else None
        self.record.ops.append(Op(name, args, kwargs, inputs, outputs, call, overwritten))

    # Operations

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # All that torch shows of how torch.tensor(1.0), and on some versions x[0] = 1.0, makes a tensor.
        # A list that becomes one the same way may well be data.
        is_number = func is torch.ops.aten.lift_fresh.default and args[0].dim() == 0
        otherwise = "constant" if is_number else "unknown"
        refs = pytree.tree_map_only(Tensor, lambda tensor: Ref(self.read(tensor, otherwise)), (args, kwargs))
        inputs = tuple(leaf.value for leaf in pytree.tree_leaves(refs) if isinstance(leaf, Ref))
        memories = {
            _memory_of(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        result = func(*args, **kwargs)
        mutated = _mutated(func, args, kwargs)
        results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        number = len(self.record.ops)
        outputs = []
        for tensor in {id(tensor): tensor for tensor in (*results, *mutated)}.values():
            value = self._new_value(tensor, "op", producer=number)
            outputs.append(value)
            if any(tensor is other for other in mutated):
                self._write(tensor, value)
            else:
                if _memory_of(tensor) not in memories:
                    self._written.pop(_memory_of(tensor), None)  # new memory, perhaps at a known address
                    self._overwritten.pop(_memory_of(tensor), None)
                    self._makers[_memory_of(tensor)] = number
                self._note(tensor, value)
        overwritten = tuple(self._makers.get(_memory_of(tensor), -1) for tensor in mutated)
        self._append_op(base_name(func), *refs, inputs, tuple(outputs), overwritten)
        return result

    # Module calls

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """While active, the calls of all modules are recorded."""
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                before = module.register_forward_pre_hook(self._before(name), prepend=True, with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(module.register_forward_hook(self._after, always_call=True).remove)
            yield

    def _before(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            values = (*args, *(kwargs[keyword] for keyword in sorted(kwargs)))
            arguments = tuple(filter(None, map(self.read_all, values)))
            parent = self._stack[-1] if self._stack else None
            call = Call(name, self._call_counts[name], parent, arguments, len(self.record.ops))
            self._call_counts[name] += 1
            if parent is not None:
                self.record.calls[parent].children.append(len(self.record.calls))
            self._stack.append(len(self.record.calls))
            self.record.calls.append(call)

        return enter

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        call = self.record.calls[self._stack.pop()]
        call.outputs = self.read_all(output)
        call.whole_output = isinstance(output, Tensor)
        call.last = len(self.record.ops)


def _mutated(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that ``func`` writes to, by the marks of its schema."""
    written: list[Any] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[position] if position < len(args) else kwargs.get(argument.name))
    return [leaf for leaf in pytree.tree_leaves(written) if isinstance(leaf, Tensor)]


def _memory_of(tensor: Tensor) -> int:
    """What tensors that share memory have in common."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


def _bytes_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() if tensor.layout is torch.strided else -1
