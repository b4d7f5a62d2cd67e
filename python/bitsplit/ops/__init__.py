"""Typed wrappers of the C++/CUDA operators `torch.ops.bitsplit.*`, one module a family.

Importing this package loads the compiled module; without it there is an ImportError that names the command to
build it. `reference` holds readable PyTorch versions of the element-wise families.
"""

from bitsplit._build_info import load_extension

load_extension()
