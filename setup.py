"""Builds the one extension module, bitsplit._C. Everything else about the package is in pyproject.toml."""

import os
import runpy
import sys
from pathlib import Path

import torch
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))
import cuda_toolkit  # noqa: E402

DECISION = cuda_toolkit.decide(os.environ.get("BITSPLIT_CUDA", "auto"), torch.version.cuda)
if DECISION.toolkit:
    os.environ["CUDA_HOME"] = str(DECISION.toolkit)  # torch reads it once, when the next line runs
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

GENERATED = ROOT / "build" / "generated"
# No contraction of a*b+c, neither on the host nor on the device: both must round alike. Kernels that want a
# fused multiply-add say fma. No -march: kernels choose their instruction set at run time. Without
# trapping-math and math-errno (nobody reads those flags) the compiler vectorises clamps and roundings; values
# stay the same.
HOST_FLAGS = ["-fopenmp", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-fvisibility=hidden"]
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-Wall", "-Wno-unknown-pragmas", *HOST_FLAGS]
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-Xcompiler=" + ",".join(HOST_FLAGS)]


def arch_list() -> str:
    """TORCH_CUDA_ARCH_LIST as given, else of the visible cards, else two that cover today's data centres."""
    if not torch.cuda.is_available():
        return os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    capabilities = {torch.cuda.get_device_capability(card) for card in range(torch.cuda.device_count())}
    own = ";".join(f"{major}.{minor}" for major, minor in sorted(capabilities))
    return os.environ.setdefault("TORCH_CUDA_ARCH_LIST", own)


def extension() -> Extension:
    """The extension with the sources of csrc/sources.txt; without CUDA the .cu lines are dropped.

    libgomp is deliberately not linked: the OpenMP calls bind to the one torch brings, so that
    `torch.set_num_threads` holds for our loops too.
    """
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    sources = [f"csrc/{line}" for line in lines if line and not line.startswith("#")]
    include_dirs = [str(ROOT / "csrc"), str(GENERATED)]
    flags = {"cxx": CXX_FLAGS}
    if DECISION.toolkit is None:
        sources = [source for source in sources if not source.endswith(".cu")]
        return CppExtension("bitsplit._C", sources, include_dirs=include_dirs, extra_compile_args=flags)
    packages = cuda_toolkit.package_folder(torch.version.cuda)
    headers, libraries = cuda_toolkit.bridge_gaps(DECISION.toolkit, packages, ROOT / "build" / "cuda")
    flags = {"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS}
    return CUDAExtension(
        "bitsplit._C",
        sources,
        include_dirs=[*include_dirs, str(headers)],
        library_dirs=[str(libraries)],
        extra_compile_args=flags,
    )


class Build(BuildExtension):
    """torch's builder, which says what it decided and keeps its objects, so that a second build is quick."""

    def finalize_options(self) -> None:
        super().finalize_options()
        kind = "cuda" if DECISION.toolkit else "cpu"
        folder = f"{kind}-torch{torch.__version__}-{sys.implementation.cache_tag}"
        self.build_temp = str(ROOT / "build" / folder)

    def build_extensions(self) -> None:
        with_cuda = DECISION.toolkit is not None
        facts = {
            "torch": torch.__version__,
            "cuda": cuda_toolkit.toolkit_version(DECISION.toolkit) if with_cuda else "no",
            "cuda_reason": DECISION.reason,
            "arch_list": arch_list() if with_cuda else "",
            "flags": " ".join(CXX_FLAGS),
            "sources": runpy.run_path(str(ROOT / "python/bitsplit/_build_info.py"))["source_hash"](ROOT),
        }
        print(f"bitsplit: {'CUDA' if with_cuda else 'CPU-only'} build, because {DECISION.reason}")
        write_facts(facts)
        super().build_extensions()


def write_facts(facts: dict[str, str]) -> None:
    """Write the header that csrc/bindings.cpp includes; left alone when nothing changed."""
    rows = "".join(f'    {{"{key}", R"({value})"}},\n' for key, value in facts.items())
    pairs = f"std::array<std::pair<const char*, const char*>, {len(facts)}>"
    includes = "#pragma once\n#include <array>\n#include <utility>\n"
    text = f"{includes}constexpr {pairs} kDecisions = {{{{\n{rows}}}}};\n"
    header = GENERATED / "bitsplit_build_info.h"
    if not header.exists() or header.read_text() != text:
        GENERATED.mkdir(parents=True, exist_ok=True)
        header.write_text(text)


setup(ext_modules=[extension()], cmdclass={"build_ext": Build})
