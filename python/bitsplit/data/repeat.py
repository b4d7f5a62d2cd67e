"""Walk an iterable that draws random numbers so that every walk draws the same ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


class Repeatable:
    """Gives ``source`` the same random state in every walk and leaves the program's own state alone.

    Covers the global generators of torch (CPU), NumPy and Python, and those of a loader and its samplers.
    """

    def __init__(self, source: Iterable[Any], seed: int) -> None:
        self._source = source
        self._seed = seed
        self._own = [(generator, generator.get_state()) for generator in _generators(source)]

    def __iter__(self) -> Iterator[Any]:
        for generator, state in self._own:
            generator.set_state(state)
        with random_state_kept():
            _seed_all(self._seed)
            iterator = iter(self._source)
            inside = _capture()
        while True:
            outside = _capture()
            _restore(inside)
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                inside = _capture()
                _restore(outside)
            yield item


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever is drawn inside, the program's own random numbers go on as if nothing had been."""
    outside = _capture()
    try:
        yield
    finally:
        _restore(outside)


def _generators(source: Any) -> list[torch.Generator]:
    if not isinstance(source, DataLoader):
        return []
    inner = getattr(source.batch_sampler, "sampler", None)
    owners = (source, source.sampler, source.batch_sampler, inner)
    found = {id(g): g for g in (getattr(owner, "generator", None) for owner in owners) if g is not None}
    return list(found.values())


def _capture() -> tuple[Any, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _restore(state: tuple[Any, Any, Any]) -> None:
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])


def _seed_all(seed: int) -> None:
    # Not torch.manual_seed: that would also reset the generators of the GPUs.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
