"""Memory that is kept while something is learned."""

from __future__ import annotations

import ctypes
import resource

import pytest
import torch

from bitsplit.ops.heap import kept_memory


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def some_large_tensors() -> None:
    tensors = [torch.ones(size << 18) for size in (5, 40, 7)]
    del tensors


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_a_loop_takes_its_memory_once():
    with kept_memory():
        some_large_tensors()
        some_large_tensors()
        before = faults()
        for _ in range(10):
            some_large_tensors()
        assert faults() - before < 52 * 256  # pages of one round


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_what_is_free_goes_back():
    def resident() -> int:
        with open("/proc/self/statm") as numbers:
            return int(numbers.read().split()[1]) * resource.getpagesize()

    before = resident()
    with kept_memory():
        some_large_tensors()
        assert resident() > before + (40 << 20)
    assert resident() < before + (40 << 20)
