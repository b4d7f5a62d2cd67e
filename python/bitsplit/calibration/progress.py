"""What is seen of a run on a terminal: layer, error, loss, time left, memory.  Silent elsewhere."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from torch import Tensor

if TYPE_CHECKING:
    from bitsplit.report.results import LayerResult

SHOWN_EVERY = 20  # iterations


class Progress:
    """A context: prints ``forecast``; ``layer`` names the layer at work, ``done`` moves on by one."""

    def __init__(self, layers: int, forecast: str) -> None:
        console = Console(stderr=True)
        if console.is_terminal:
            console.print(forecast)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=layers, facts="")
        self._learning = self._bar.add_task("", total=0, facts="", visible=False)
        self._loss: Tensor | None = None

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def layer(self, name: str) -> None:
        """``name`` is being fitted now."""
        self._bar.update(self._task, description=name)

    def iterations(self, name: str, count: int) -> Iterator[int]:
        """0, 1, ... count - 1, on a bar of its own while ``name`` is learned."""
        self._bar.reset(self._learning, total=count, description=f"learning {name}", visible=True)
        for iteration in range(count):
            if iteration % SHOWN_EVERY == 0 and not self._bar.disable:
                loss = "" if self._loss is None else f"loss {float(self._loss):.3g}"
                self._bar.update(self._learning, completed=iteration, facts=loss)
            yield iteration
        self._loss = None
        self._bar.update(self._learning, visible=False)

    def loss(self, loss: Tensor) -> None:
        """The loss of the iteration at work, looked at only when it is shown."""
        self._loss = loss

    def done(self, result: LayerResult | None) -> None:
        """One layer is finished; ``result`` is what came of it, None when it stays float."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        error = "" if result is None or result.error is None else f"error {result.error:.2%}  "
        self._bar.update(self._task, advance=1, facts=f"{error}peak {peak:.1f} GiB")
