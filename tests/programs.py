"""Python code in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def run_program(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``code``, which finds the modules that this process finds; its outcome, whatever it is."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)


# The network and the photos of the fixture `folder`, on the command line.
NET = ("--model", "net.py:net", "--weights", "weights.pt")
SMALL = ("--preprocessing", "{resize: 32, crop: 32}")
