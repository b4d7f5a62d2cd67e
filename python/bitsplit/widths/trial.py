"""What every layer alone costs the network at every width, tried unit by unit in one walk.

The network in front of a unit has eight bits, what comes behind it is float.  In the unit every layer is
fitted at every width (and, where the chain learns, all layers of the unit are learned at that width
together); then one layer after the other takes what it got while its neighbours keep eight bits, and so do
pairs of layers at the smallest width.  BRECQ (ICLR 2021) estimates what that does to the network from the
unit's own error; here the network itself is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations

from pydantic import SerializeAsAny
from torch import Tensor
from torch.utils import _pytree as pytree

from bitsplit.methods.base import Method
from bitsplit.methods.tasks import Granularity, LayerTask, Outcome, Piece, Run
from bitsplit.methods.whole import Outputs, comparable, divergence
from bitsplit.network.layers import LayerKind
from bitsplit.quantizers import attach_weight_quantizer, fitted_state, set_fitted_state

WIDEST = 8


def at_width(layer: str, bits: int) -> str:
    """The name of a figure: the network's loss when one layer has so many bits."""
    return f"{layer} W{bits}"


def pair_of(first: str, second: str) -> str:
    """The name of a figure: what two layers at the smallest width cost beyond what each costs alone."""
    return f"{first} + {second}"


class Trial(Method):
    """Tries the methods of ``chain`` on the layers ``candidates`` at ``widths`` (ascending, below eight).

    images: how many of them the network is asked about.  outputs: as for ``Global``.
    """

    name = "trial"
    chain: tuple[SerializeAsAny[Method], ...]
    widths: tuple[int, ...]
    candidates: frozenset[str]
    images: int
    outputs: Outputs = "classes"

    @property
    def granularity(self) -> Granularity:
        return "block"

    @property
    def kept_rows(self) -> tuple[int, int]:
        inputs, outputs = zip(*(method.kept_rows for method in self.chain), strict=True)
        return max(inputs), max(outputs)

    @property
    def asked_images(self) -> int:
        return self.images

    def memory(self, kind: LayerKind, groups: int, columns: int) -> int:
        return max(method.memory(kind, groups, columns) for method in self.chain)

    def prepare(self, run: Run) -> None:
        for method in self.chain:
            method.prepare(run)

    def fit_layer(self, task: LayerTask) -> None:
        for method in self.chain:
            method.fit_layer(task)

    def fit_piece(self, piece: Piece) -> Outcome | None:
        tasks = [task for task in piece.layers if task.name in self.candidates]
        if not tasks:
            return None
        bench = Bench(piece.layers)
        for task in tasks:
            for bits in self.widths:
                with bench.having({task.name: bits}):
                    self.fit_layer(task)
                    bench.keep(task, bits)
        for bits in self.widths:
            self._learn_together(piece, bench, tasks, bits)
        return Outcome(0.0, 0.0, 0.0, figures=self._figures(piece, bench, tasks))

    def _learn_together(self, piece: Piece, bench: Bench, tasks: list[LayerTask], bits: int) -> None:
        learning = [method for method in self.chain if method.granularity is not None]
        if not learning:
            return
        with bench.having({task.name: bits for task in tasks}):
            for method in learning:
                method.fit_piece(piece)
            for task in tasks:
                bench.keep(task, bits)

    def _figures(self, piece: Piece, bench: Bench, tasks: list[LayerTask]) -> dict[str, float]:
        """Losses beyond that with eight bits in the whole unit."""
        base, smallest = self._divergence(piece), self.widths[0]

        def loss(bits: dict[str, int]) -> float:
            with bench.having(bits):
                return self._divergence(piece) - base

        names = [task.name for task in tasks]
        figures = {at_width(name, bits): loss({name: bits}) for name in names for bits in self.widths}
        for pair in combinations(names, 2):
            alone = sum(figures[at_width(name, smallest)] for name in pair)
            figures[pair_of(*pair)] = loss(dict.fromkeys(pair, smallest)) - alone
        return figures

    def _divergence(self, piece: Piece) -> float:
        """Of the network from the float one, mean over the images asked about."""
        total, images = 0.0, 0
        for got, wanted in piece.responses(paired=self.outputs == "values"):
            if not comparable(got, wanted):
                raise ValueError(
                    "quantized, the network gives outputs of other forms than in float, as detectors do with "
                    "boxes: ask with outputs='values'"
                )
            count = next((len(leaf) for leaf in pytree.tree_leaves(wanted) if isinstance(leaf, Tensor)), 1)
            exact = pytree.tree_map_only(Tensor, in_float64, (got, wanted))  # differences can be tiny
            total += count * float(divergence(*exact, self.outputs))
            images += count
            if images >= self.images:
                break
        return total / images


def in_float64(values: Tensor) -> Tensor:
    """Floating values so; others as they are."""
    return values.double() if values.is_floating_point() else values


class Bench:
    """The layers of a unit as they are with eight bits where they have a choice, and what some have got at
    other widths."""

    def __init__(self, tasks: Sequence[LayerTask]) -> None:
        self.tasks = tasks
        self._grids = {task.name: task.weight_grid for task in tasks if task.weight_grid is not None}
        self._wide = {task.name: fitted_state(task.module) for task in tasks}
        self._kept: dict[tuple[str, int], dict[str, Tensor]] = {}

    def keep(self, task: LayerTask, bits: int) -> None:
        """What ``task`` has now is what it has got at ``bits``; steps of inputs stay those of eight bits."""
        state = fitted_state(task.module)
        self._kept[task.name, bits] = {k: v for k, v in state.items() if not k.startswith("input_quantizer")}

    @contextmanager
    def having(self, widths: Mapping[str, int]) -> Iterator[None]:
        """Some layers at other widths for a while, as they were kept there; unfitted where none was."""
        changed = [task for task in self.tasks if task.name in widths]
        for task in changed:
            bits = widths[task.name]
            attach_weight_quantizer(task.module, self._grids[task.name].at(bits))
            if (task.name, bits) in self._kept:
                set_fitted_state(task.module, self._kept[task.name, bits])
        try:
            yield
        finally:
            for task in self.tasks:
                if task.name in self._grids:
                    attach_weight_quantizer(task.module, self._grids[task.name])
                set_fitted_state(task.module, self._wide[task.name])
