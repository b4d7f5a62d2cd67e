"""Which rows the float network selects by their values, for the quantized network to select the same.

A detector keeps its best boxes (``topk``, non-maximum suppression, masks).  The last digit of a score decides
which, how many, and in which order; what comes behind can be compared row by row only where both networks
have selected alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bitsplit.calibration.features import FeatureStore
from bitsplit.network.operations import CHOOSING, MASK_TYPES, MASKING, ORDERING
from bitsplit.network.record import base_name


class Selections:
    """Notes what one forward of every batch selects; later forwards, of every model, select that.

    units: modules whose calls later forwards may skip; selections are told apart by the call they happen in.
    """

    def __init__(self, store: FeatureStore, models: Sequence[nn.Module], units: Iterable[str]) -> None:
        self._store, self._models, self._units = store, models, tuple(units)
        self._noting = False
        self._index = 0
        self._calls: Counter[str] = Counter()  # of units, without those inside of others
        self._inside: list[tuple[str, int]] = []  # unit calls at work, the outermost first
        self._count: Counter[Hashable] = Counter()  # selections so far, by where

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Has to be active whenever a model runs."""
        with ExitStack() as hooks:
            for model in self._models:
                for name in self._units:
                    module = model.get_submodule(name)
                    before = module.register_forward_pre_hook(self._entering(name), prepend=True)
                    hooks.callback(before.remove)
                    hooks.callback(module.register_forward_hook(self._leave, always_call=True).remove)
            yield

    @contextmanager
    def noting(self) -> Iterator[None]:
        """While active, what is selected counts for all later forwards."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def of(self, index: int) -> TorchDispatchMode:
        """To be active during one forward of batch number ``index``."""
        self._index = index
        self._calls.clear()
        self._inside.clear()
        self._count.clear()
        return _Selecting(self.select)

    def select(self, what: str, own: Tensor) -> Tensor:
        """What the noted forward selected here; ``own`` in that forward, and where it did not come to."""
        place = self._inside[0] if self._inside else None
        key = ("selected", what, self._index, place, self._count[place])
        self._count[place] += 1
        if self._noting:
            self._store.put(key, own, own.device)
        return self._store.get(key) if key in self._store else own

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._inside.append((name, self._calls[name]))
            if len(self._inside) == 1:
                self._calls[name] += 1

        return enter

    def _leave(self, *_: Any) -> None:
        self._inside.pop()


class _Selecting(TorchDispatchMode):
    """Lets ``select`` decide, given an operation's name and what it has selected itself."""

    def __init__(self, select: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self._select = select

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, base_name(func)
        if name in MASKING:
            for mask in _masks(name, args):
                _overwrite(mask, self._select(name, mask))
        result = func(*args, **kwargs)
        if name in ORDERING:
            return self._ordered(name, args[0], result[1], _argument(func, "dim", args, kwargs))
        parts = (result,) if isinstance(result, Tensor) else result
        if name not in CHOOSING or parts[0].is_floating_point():  # values themselves, not which
            return result
        chosen = tuple(self._select(name, part) for part in parts)
        return chosen[0] if isinstance(result, Tensor) else chosen

    def _ordered(self, name: str, values: Tensor, order: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        order = self._select(name, order)
        return values.gather(dim, order), order


def _masks(name: str, args: tuple) -> list[Tensor]:
    """Those that decide how many rows there are.

    One that a single value is written under is no selection: negative values become zero in this way.
    """
    if name == "masked_select":
        return [args[1]]
    if name == "index_put" and args[2].numel() == 1:
        return []
    return [index for index in args[1] if index is not None and index.dtype in MASK_TYPES]


def _overwrite(mask: Tensor, values: Tensor) -> None:
    """In place, because autograd has kept the mask."""
    for axis, stride in enumerate(mask.stride()):
        if stride == 0 and mask.shape[axis] > 1:  # expanded: one element of memory for all
            mask, values = mask.narrow(axis, 0, 1), values.narrow(axis, 0, 1)
    mask.copy_(values)


def _argument(func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operation is called with under this name, or its default."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            given = args[position] if position < len(args) else argument.default_value
            return kwargs.get(name, given)
    raise TypeError(f"{func} has no argument {name}")
