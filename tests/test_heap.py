"""Memory that is kept while something is learned.

Each test is a process of its own: where an allocation has failed before, memory comes from elsewhere.
"""

from __future__ import annotations

import ctypes

import pytest
from programs import run_program

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library is not glibc 2.33 or newer"
)

A_ROUND = """
import ctypes
import resource
import torch
from bitsplit.ops.heap import kept_memory

MEBIBYTES = (5, 40, 7)

def a_round():
    tensors = [torch.ones(size << 18) for size in MEBIBYTES]
    return mapped()

def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()

class Counts(ctypes.Structure):  # of mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Counts

def heap():
    return library.mallinfo2().arena

def mapped():
    return library.mallinfo2().hblkhd
"""


def run(code: str) -> None:
    done = run_program(A_ROUND + code)
    assert done.returncode == 0, done.stderr


def test_a_loop_takes_its_memory_once():
    """The heap keeps what a round has freed, and nothing is mapped for a tensor alone.

    At first it may grow once more, where something small has come to lie in what was freed.
    """
    run("""
outside, sizes = mapped(), []
with kept_memory():
    for _ in range(20):
        assert a_round() <= outside
        sizes.append(heap())
assert sizes == sorted(sizes), sizes
assert len(set(sizes)) <= 8, sizes
""")


def test_what_is_free_goes_back():
    run("""
before = resident()
with kept_memory():
    a_round()
    assert resident() > before + (40 << 20)
assert resident() < before + (40 << 20)
""")
