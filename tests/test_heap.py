"""Memory that is kept while something is learned.

Each test is a process of its own: where an allocation has failed before, memory comes from elsewhere.
"""

from __future__ import annotations

import ctypes

import pytest
from programs import run_program

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)

A_ROUND = """
import resource
import torch
from bitsplit.ops.heap import kept_memory

MEBIBYTES = (5, 40, 7)

def a_round():
    tensors = [torch.ones(size << 18) for size in MEBIBYTES]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()
"""


def run(code: str) -> None:
    done = run_program(A_ROUND + code)
    assert done.returncode == 0, done.stderr


def test_a_loop_takes_its_memory_once():
    run("""
with kept_memory():
    taking = 0
    for _ in range(12):
        before = faults()
        a_round()
        taking += (faults() - before) * resource.getpagesize() > 1 << 20
    # the first round; another where a small allocation has come to lie in what that one had freed
    assert taking <= 4, taking
""")


def test_what_is_free_goes_back():
    run("""
before = resident()
with kept_memory():
    a_round()
    assert resident() > before + (40 << 20)
assert resident() < before + (40 << 20)
""")
