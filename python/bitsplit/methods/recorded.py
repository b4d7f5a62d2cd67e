"""One iteration, recorded once on a GPU and replayed.

An iteration on a block is some hundred kernels, most of which take less time than their launch; a CUDA graph
launches all of them at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from bitsplit.errors import first_line

WARM_UP = 3  # iterations in which libraries choose algorithms and allocate, which cannot be recorded


class Recorded:
    """Calls ``iteration``; on a GPU, given as ``device``, it becomes a CUDA graph after ``WARM_UP`` calls.

    What depends on the number of the call has to come out of tensors that the iteration itself changes in
    place (``bitsplit.methods.clock``).  The result is a tensor that the next call may overwrite.  An
    iteration that waits for the GPU to decide what to do is called every time; a warning names it.
    """

    possible = True  # in this process: some releases of torch cannot record after they have failed once

    def __init__(self, name: str, iteration: Callable[[], Tensor], device: torch.device | None) -> None:
        self._name, self._iteration = name, iteration
        self._recordable = device is not None and Recorded.possible
        self._stream = torch.cuda.Stream(device) if self._recordable else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None
        self._calls = 0

    def __call__(self) -> Tensor:
        self._calls += 1
        if self._recordable and self._graph is None:
            if self._calls == WARM_UP:
                return self._watched()
            if self._calls > WARM_UP:
                self._record()
        if self._graph is None:
            return self._called()
        self._graph.replay()
        return self._result

    def _called(self) -> Tensor:
        """On the stream that will record, because libraries prepare themselves for every stream anew."""
        if self._stream is None:
            return self._iteration()
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._iteration()
        current.wait_stream(self._stream)
        return result

    def _watched(self) -> Tensor:
        """Finds out whether the iteration waits for the GPU."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = self._called()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
        if waits:
            self._give_up(waits[0].splitlines()[0])
        return result

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # the outer context brings the current stream back whatever happens in the inner one
            with torch.cuda.stream(self._stream), torch.cuda.graph(graph, stream=self._stream):
                self._result = self._iteration()
        except RuntimeError as error:
            Recorded.possible = False
            self._give_up(first_line(error.__context__ or error))
            return
        self._graph = graph

    def _give_up(self, reason: str) -> None:
        self._recordable = False
        warnings.warn(
            f"{self._name}: its iterations cannot be recorded as a CUDA graph and run kernel by kernel "
            f"({reason})",
            stacklevel=2,
        )
