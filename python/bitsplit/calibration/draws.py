"""Which rows every iteration reads: chosen before the first one, so that a GPU need not be told each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bitsplit.methods.tasks import Sample


class _Queue:
    """Rows of one group, [times, count], to be taken one after the other; the place is a tensor, too."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._place = torch.zeros(1, dtype=torch.int64, device=rows.device)

    def take(self) -> Tensor:
        rows = self._rows.index_select(0, self._place)[0]
        self._place.add_(1)
        return rows


class RowDraws:
    """Random rows for every iteration: called once in each it gives the sample, valid until the next call.

    sizes, devices: of the groups of rows, which are drawn in proportion to their sizes.  count: rows at a
    time; of a smaller group all.  gathered: the sample of these rows of a group.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        devices: Sequence[torch.device],
        count: int,
        iterations: int,
        generator: torch.Generator,
        gathered: Callable[[int, Tensor], Sample],
    ) -> None:
        self._gathered = gathered
        self._groups = _chosen(sizes, iterations, generator)
        self._next = 0
        self._queues: dict[int, _Queue] = {}
        for group in sorted(set(self._groups)):
            rows = torch.empty(self._groups.count(group), min(count, sizes[group]), dtype=torch.int64)
            for row in rows:
                row.copy_(torch.randperm(sizes[group], generator=generator)[: len(row)])
            self._queues[group] = _Queue(rows.to(devices[group]))
        places = [devices[group] for group in self._queues]
        self.card = places[0] if len(places) == 1 and places[0].type == "cuda" else None

    def __call__(self) -> Sample:
        group = self._groups[self._next]
        self._next += self.card is None  # calls on a card are recorded, and made again without Python
        return self._gathered(group, self._queues[group].take())


def _chosen(sizes: Sequence[int], iterations: int, generator: torch.Generator) -> list[int]:
    """A group for every iteration."""
    if len(sizes) == 1:
        return [0] * iterations
    ends = torch.tensor(sizes).cumsum(0)
    places = torch.randint(int(ends[-1]), (iterations,), generator=generator)
    return torch.searchsorted(ends, places, right=True).tolist()
