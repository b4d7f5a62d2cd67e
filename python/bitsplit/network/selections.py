"""Which rows a forward selects by their values, for other forwards to select the same.

A detector keeps its best boxes (``topk``, non-maximum suppression, masks).  The last digit of a score decides
which, how many, and in which order; what comes behind can be compared row by row only where both forwards
have selected alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from bitsplit.network.operations import CHOOSING, COUNTING, MASK_TYPES, MASKING, ORDERING, REDUCING
from bitsplit.network.record import base_name


class Store(Protocol):
    """Where selections are kept."""

    def __contains__(self, key: Hashable) -> bool: ...

    def get(self, key: Hashable) -> Any:
        """A copy."""

    def put(self, key: Hashable, tree: Any, device: torch.device) -> None:
        """Keep a tree of tensors that belongs to a device."""


class Noted(dict):
    """Keeps them in memory."""

    def get(self, key: Hashable) -> Any:
        return pytree.tree_map_only(Tensor, torch.clone, self[key])

    def put(self, key: Hashable, tree: Any, device: torch.device) -> None:
        self[key] = pytree.tree_map_only(Tensor, torch.clone, tree)


class Selections:
    """Notes what one forward of every batch selects; later forwards, of every model, select that.

    units: modules whose calls later forwards may skip; selections are told apart by the call they happen in.
    """

    def __init__(self, store: Store, models: Sequence[nn.Module], units: Iterable[str] = ()) -> None:
        self._store, self._models, self._units = store, models, tuple(units)
        self._noting = False
        self._index = 0
        self._calls: Counter[str] = Counter()  # of units, without those inside of others
        self._inside: list[tuple[str, int]] = []  # unit calls at work, the outermost first
        self._count: Counter[Hashable] = Counter()  # selections so far, by where and what

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Has to be active whenever a model runs."""
        with ExitStack() as hooks:
            for model in self._models:
                for name in self._units:
                    module = model.get_submodule(name)
                    # what other hooks of a unit select is outside of it: they run when it is skipped, too
                    hooks.callback(module.register_forward_pre_hook(self._entering(name)).remove)
                    leaving = module.register_forward_hook(self._leave, prepend=True, always_call=True)
                    hooks.callback(leaving.remove)
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

    def select(self, what: str, own: Any, among: torch.Size) -> Any:
        """What the noted forward selected here; ``own`` in that forward, and where it was not here.

        among: the shape of what is selected from; where that was another, rows are others already.
        """
        place = self._inside[0] if self._inside else None
        key = ("selected", what, self._index, place, self._count[place, what])
        self._count[place, what] += 1
        if self._noting:
            device = own.device if isinstance(own, Tensor) else torch.device("cpu")
            self._store.put(key, (own, list(among)), device)
        if key not in self._store:
            return own
        noted, shape = self._store.get(key)
        return noted if shape == list(among) else own

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._inside.append((name, self._calls[name]))
            if len(self._inside) == 1:
                self._calls[name] += 1

        return enter

    def _leave(self, *_: Any) -> None:
        self._inside.pop()


class _Selecting(TorchDispatchMode):
    """Lets ``select`` decide, given an operation's name, what it has selected itself, and from what."""

    def __init__(self, select: Callable[[str, Any, torch.Size], Any]) -> None:
        super().__init__()
        self._select = select

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, base_name(func)
        if name in MASKING:
            for mask in _masks(name, args):
                _overwrite(mask, self._select(name, mask, mask.shape))
        result = func(*args, **kwargs)
        if name in COUNTING:
            whole = not args[0].is_floating_point()
            return self._select(name, result, args[0].shape) if whole else result
        if name in ORDERING:
            order = self._select(name, result[1], args[0].shape)
            values = args[0].gather(_argument(func, "dim", args, kwargs), order)
            return _delivered(func, result, (values, order))
        if name in REDUCING and not isinstance(result, Tensor):
            places = self._select(name, result[1], args[0].shape)
            return _delivered(func, result, (result[0], places))
        if name in CHOOSING:
            return self._chosen(name, func, args, result)
        return result

    def _chosen(self, name: str, func: Any, args: tuple, result: Any) -> Any:
        parts = (result,) if isinstance(result, Tensor) else result
        if parts[0].is_floating_point():  # values themselves, not which
            return result
        chosen = tuple(self._select(name, part, args[0].shape) for part in parts)
        return _delivered(func, result, chosen[0] if isinstance(result, Tensor) else chosen)


def _masks(name: str, args: tuple) -> list[Tensor]:
    """Those that decide how many rows there are.

    One that a single value is written under is no selection: negative values become zero in this way.
    """
    if name in ("masked_select", "masked_scatter"):
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


def _delivered(func: Any, result: Any, chosen: Any) -> Any:
    """What the caller reads: ``chosen``, or its own tensors with that in them (``out=``)."""
    if not func._schema.is_mutable:
        return chosen
    for place, value in zip(*((x,) if isinstance(x, Tensor) else x for x in (result, chosen)), strict=True):
        place.resize_(value.shape).copy_(value)
    return result


def _argument(func: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operation is called with under this name, or its default."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            given = args[position] if position < len(args) else argument.default_value
            return kwargs.get(name, given)
    raise TypeError(f"{func} has no argument {name}")
