"""What a piece of the network read and gave for every calibration image, to be drawn row by row.

A *row* is one image's share of the arguments and of the output, cut along the first axis.  Rows of equal
shapes lie in one table: on the card where the model is, in memory or, beyond the budget, in a file.  What
comes back is the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsplit.calibration.draws import RowDraws
from bitsplit.calibration.features import FeatureStore
from bitsplit.methods.tasks import Sample

FURTHER = 4


@dataclass
class _Column:
    """One tensor of all rows: its rows in the order of their memory, and how one batch of them looks."""

    table: Tensor  # [capacity, elements]
    shape: tuple[int, ...]  # of a row
    stride: tuple[int, ...]
    buffer: Tensor | None = None

    def add(self, first: int, values: Tensor) -> None:
        self.table[first : first + len(values)] = _in_memory_order(values, self.stride)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows, in a buffer that the next call uses again."""
        if self.buffer is None or len(self.buffer) != len(rows):
            shape, pinned = (len(rows), self.table.shape[1]), self.table.is_pinned()
            self.buffer = self.table.new_empty(shape, pin_memory=pinned)
        torch.index_select(self.table, 0, rows.to(self.table.device), out=self.buffer)
        return self.buffer.as_strided((len(rows), *self.shape), (self.table.shape[1], *self.stride))


def _in_memory_order(values: Tensor, stride: tuple[int, ...]) -> Tensor:
    """``values`` as [rows, elements], each row in the order that ``stride`` has in memory."""
    rows = values.new_empty_strided(values.shape, (values[0].numel(), *stride))
    return rows.copy_(values).as_strided((len(values), values[0].numel()), (values[0].numel(), 1))


@dataclass
class _Group:
    """Rows of equal shapes.

    constants: the leaves that are no rows, None in the place of those that are.  positions: of the columns
    among the leaves.
    """

    spec: Any
    constants: list[Any]
    positions: list[int]
    columns: list[_Column]
    capacity: int
    count: int = 0

    @property
    def device(self) -> torch.device:
        """Where all columns lie, or, when they lie in different places, the CPU."""
        devices = {column.table.device for column in self.columns}
        return devices.pop() if len(devices) == 1 else torch.device("cpu")

    def tree(self, rows: Tensor) -> Any:
        # copies of the constants, because the piece may change what it gets in place
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in self.constants]
        for position, column in zip(self.positions, self.columns, strict=True):
            leaves[position] = column.gather(rows)
        return pytree.tree_unflatten(leaves, self.spec)


class RowTable:
    """Gathers samples batch by batch; afterwards gives random rows of them.

    whole: a batch is one row, because the images in it are not computed independently of each other.
    capacity: how many rows to expect; tables of further shapes grow by ``FURTHER`` batches.
    """

    def __init__(self, store: FeatureStore, device: torch.device, capacity: int, whole: bool) -> None:
        self._store, self._device, self._whole = store, device, whole
        self._capacity = capacity
        self._groups: list[_Group] = []
        self._weight_sum, self._weight_count = 0.0, 0

    @property
    def mean_weight(self) -> float:
        return self._weight_sum / self._weight_count if self._weight_count > 0 else 1.0

    def add(self, sample: Sample) -> None:
        """Keep a sample; its tensors that are as long as the target are cut into rows.

        Which ones that may be is decided by the first sample of a structure: what is longer or shorter there
        is a constant, though a later batch may happen to have its length.  A sample without rows is none.
        """
        if sample.target.numel() == 0:
            return
        if sample.weight is not None:
            self._weight_sum += float(sample.weight.sum(dtype=torch.float64))
            self._weight_count += sample.weight.numel()
        leaves, spec = pytree.tree_flatten(sample)
        rows = 1 if self._whole else len(sample.target)
        if self._whole:
            leaves = [leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        known = (group.positions for group in self._groups if group.spec == spec)
        positions = [
            index for index in next(known, range(len(leaves))) if _is_as_long_as(rows, leaves[index])
        ]
        group = self._group_of(leaves, spec, positions, rows)
        for position, column in zip(positions, group.columns, strict=True):
            column.add(group.count, leaves[position].detach())
        group.count += rows

    def draws(self, count: int, iterations: int, generator: torch.Generator) -> RowDraws:
        """What gives ``count`` random rows in every iteration, or all rows of a shape that has fewer."""
        return RowDraws(
            [group.count for group in self._groups],
            [group.device for group in self._groups],
            1 if self._whole else count,
            iterations,
            generator,
            lambda group, rows: self._delivered(self._groups[group].tree(rows)),
        )

    def all(self, count: int) -> Iterator[Sample]:
        """All rows in their order, up to ``count`` at a time."""
        for group in self._groups:
            for rows in torch.arange(group.count).split(1 if self._whole else count):
                yield self._delivered(group.tree(rows))

    def close(self) -> None:
        """Free everything."""
        for group in self._groups:
            for column in group.columns:
                self._store.free(column.table)
        self._groups.clear()

    def _delivered(self, tree: Any) -> Any:
        def deliver(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return (leaf.squeeze(0) if self._whole else leaf).to(self._device)

        return pytree.tree_map(deliver, tree)

    def _group_of(self, leaves: list[Any], spec: Any, positions: list[int], rows: int) -> _Group:
        constants = [None if index in positions else leaf for index, leaf in enumerate(leaves)]
        shapes = [(tuple(leaves[p].shape[1:]), leaves[p].dtype) for p in positions]
        for group in self._groups:
            known = [(column.shape, column.table.dtype) for column in group.columns]
            room = group.count + rows <= group.capacity
            if group.spec == spec and known == shapes and room and _equal(group.constants, constants):
                return group
        capacity = max(rows, FURTHER * rows if self._groups else self._capacity)
        columns = [self._column(leaves[position], capacity) for position in positions]
        self._groups.append(_Group(spec, constants, positions, columns, capacity))
        return self._groups[-1]

    def _column(self, values: Tensor, capacity: int) -> _Column:
        row = _dense(values)[0]
        table = self._store.allocate((capacity, row.numel()), values.dtype, self._device)
        return _Column(table, tuple(row.shape), tuple(row.stride()))


def _is_as_long_as(rows: int, leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == rows


def _dense(values: Tensor) -> Tensor:
    """Feature maps are kept with the channels last, which convolutions compute fastest on."""
    if values.dim() == 4:
        return torch.empty_like(values, memory_format=torch.channels_last)
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _equal(left: list[Any], right: list[Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.shape == b.shape and torch.equal(a, b)
        if type(a) is not type(b) or isinstance(a, Tensor):
            return False
        equal = a == b  # of arrays element by element
        return bool(equal.all() if hasattr(equal, "all") else equal)

    return all(same(a, b) for a, b in zip(left, right, strict=True))
