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

    What depends on the number of the call has to come out of tensors that the iteration itself changes
    (``bitsplit.methods.clock``).  The result is a tensor that the next call may overwrite.  An iteration that
    cannot be recorded, because it waits for the GPU to decide what to do, is called every time; a warning
    names it.
    """

    def __init__(self, name: str, iteration: Callable[[], Tensor], device: torch.device | None) -> None:
        self._name, self._iteration = name, iteration
        self._recordable = device is not None
        self._stream = torch.cuda.Stream(device) if self._recordable else None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None
        self._calls = 0

    def __call__(self) -> Tensor:
        self._calls += 1
        if self._graph is None and self._recordable and self._calls > WARM_UP:
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

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._result = self._iteration()
        except RuntimeError as error:
            self._recordable = False
            warnings.warn(
                f"{self._name}: its iterations cannot be recorded as a CUDA graph and run kernel by kernel "
                f"({first_line(error)})",
                stacklevel=2,
            )
            return
        self._graph = graph
