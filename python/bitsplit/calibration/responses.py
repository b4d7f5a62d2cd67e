"""How far the quantized layers' responses are from the float ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


class ResponseErrors:
    """Squared error of the responses of some layers, and the square of the float ones, summed over batches.

    Run the teacher first, then the student, batch by batch, inside ``watching``.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._targets: dict[str, list[Tensor]] = defaultdict(list)
        self._error: dict[str, float] = defaultdict(float)
        self._energy: dict[str, float] = defaultdict(float)

    def relative(self, name: str) -> float | None:
        """Error over energy; None when the layer saw no data."""
        if name not in self._energy:
            return None
        energy = self._energy[name]
        return self._error[name] / energy if energy > 0 else 0.0

    @contextmanager
    def watching(self, teacher: nn.Module, student: nn.Module) -> Iterator[None]:
        """While active, both models' responses are compared."""
        with ExitStack() as hooks:
            for name in self._names:
                for model, note in ((teacher, self._keep), (student, self._compare)):
                    handle = model.get_submodule(name).register_forward_hook(note(name))
                    hooks.callback(handle.remove)
            yield

    def next_batch(self) -> None:
        """Forget targets that the student did not reach."""
        self._targets.clear()

    def _keep(self, name: str) -> Callable[..., None]:
        # later layers may change the response in place
        return lambda module, args, output: self._targets[name].append(output.detach().clone())

    def _compare(self, name: str) -> Callable[..., None]:
        def compare(module: nn.Module, args: tuple, output: Tensor) -> None:
            if self._targets[name] and self._targets[name][0].shape == output.shape:
                target = self._targets[name].pop(0)
                self._error[name] += _energy(output.detach() - target)
                self._energy[name] += _energy(target)

        return compare


def _energy(values: Tensor) -> float:
    """The sum of squares, in float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
