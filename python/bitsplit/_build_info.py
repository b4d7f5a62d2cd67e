"""The compiled module: loading it, and noticing when it does not fit this torch or these sources."""

import hashlib
import importlib
import warnings
from pathlib import Path
from types import ModuleType

BUILD_COMMAND = "python setup.py build_ext --inplace"
INSTALL_COMMAND = "pip install --no-build-isolation ."


def source_hash(root: Path) -> str:
    """Hash of everything the compiled module is made from, below the repository root."""
    files = [
        path for path in (root / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh", ".txt"}
    ]
    files += [root / "setup.py", root / "scripts" / "cuda_toolkit.py"]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def load_extension() -> ModuleType:
    """Import `bitsplit._C`, which registers the operators.

    Raises:
        ImportError: it was never built, or built for another torch; names the command that helps.

    Warns when the sources of this checkout changed since it was built.
    """
    import torch

    root = Path(__file__).resolve().parents[2]
    checkout = (root / "csrc" / "sources.txt").is_file()
    command = (
        f"run `{BUILD_COMMAND}` in {root}" if checkout else f"run `{INSTALL_COMMAND}` in bitsplit's sources"
    )
    try:
        module = importlib.import_module("bitsplit._C")
    except ImportError as error:
        raise ImportError(
            f"bitsplit's compiled module does not load with torch {torch.__version__} ({error}); {command}"
        ) from error
    built = module.build_info()
    if built["torch"] != torch.__version__:
        raise ImportError(
            f"bitsplit's compiled module was built for torch {built['torch']}, "
            f"this is {torch.__version__}; {command}"
        )
    if checkout and built["sources"] != source_hash(root):
        warnings.warn(f"bitsplit's C++ sources changed since they were built; {command}", stacklevel=2)
    return module


def build_info() -> dict[str, str]:
    """How the compiled module was built.

    Keys: torch, cuda (toolkit version or "no"), cuda_reason, arch_list, flags, sources, compiler and
    cpu_capability (the instruction set torch chose on this machine).
    """
    return load_extension().build_info()
