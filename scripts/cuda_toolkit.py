"""Decide whether the extension is built with CUDA, and with which toolkit. Standard library only."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What the extension links besides torch's own libraries.
LINKED_LIBRARIES = ("cudart",)
# Headers of CUDA libraries that torch's headers ask for and a bare compiler toolkit lacks.
LIBRARY_HEADERS = ("cublas*.h", "cusparse*.h", "cusolver*.h", "curand*.h", "cufft*.h", "nvrtc*.h")


@dataclass(frozen=True)
class Decision:
    """`toolkit` is the CUDA_HOME to build with, None for a CPU build; `reason` says why, for people."""

    toolkit: Path | None
    reason: str


def decide(request: str, torch_cuda: str | None) -> Decision:
    """Answer BITSPLIT_CUDA.

    Args:
        request: "auto", "1" or "0".
        torch_cuda: `torch.version.cuda`.
    """
    if request not in ("auto", "1", "0"):
        raise SystemExit(f"BITSPLIT_CUDA must be auto, 1 or 0, got {request!r}")
    if request == "0":
        return Decision(None, "BITSPLIT_CUDA=0")
    if torch_cuda is None:
        decision = Decision(None, "this torch is a CPU build")
    else:
        decision = _find_toolkit(torch_cuda)
    if request == "1" and decision.toolkit is None:
        raise SystemExit(f"BITSPLIT_CUDA=1 but {decision.reason}")
    return decision


def toolkit_version(toolkit: Path) -> str:
    """Version of a toolkit's nvcc as "13.2", or "" when the folder holds no working toolkit."""
    nvcc = toolkit / "bin" / "nvcc"
    if not nvcc.is_file() or not (toolkit / "include" / "cuda_runtime.h").is_file():
        return ""
    answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+\.\d+)", answer.stdout)
    return release[1] if release else ""


def package_folder(torch_cuda: str) -> Path | None:
    """The folder that NVIDIA's packages share (`site-packages/nvidia/cu13` for CUDA 13)."""
    nvidia = importlib.util.find_spec("nvidia")
    places = nvidia.submodule_search_locations if nvidia else None
    folders = [Path(place) / f"cu{torch_cuda.split('.')[0]}" for place in places or ()]
    # A chained environment has several: the one with a compiler is the one to build with.
    folders.sort(key=lambda folder: not (folder / "bin" / "nvcc").is_file())
    return next((folder for folder in folders if folder.is_dir()), None)


def bridge_gaps(toolkit: Path, packages: Path | None, folder: Path) -> tuple[Path, Path]:
    """Fill what a toolkit lacks with links to the packages torch runs on.

    A packaged toolkit has `libcudart.so.13` but no `libcudart.so`; a system toolkit may lack the headers of
    other libraries. Only what is missing is linked: a whole second include folder would mix two versions of
    the runtime's headers, because a header prefers its neighbours.

    Returns the include folder and the library folder, both inside `folder`; links that are right stay.
    """
    headers, libraries = {}, {}
    for pattern in LIBRARY_HEADERS if packages else ():
        for header in (packages / "include").glob(pattern):
            if not (toolkit / "include" / header.name).exists():
                headers[header.name] = header
    for name in LINKED_LIBRARIES if packages else ():
        own = [toolkit / place / f"lib{name}.so" for place in ("lib64", "lib")]
        packaged = sorted((packages / "lib").glob(f"lib{name}.so.*"))
        if packaged and not any(path.exists() for path in own):
            libraries[f"lib{name}.so"] = packaged[-1]
    return _folder_of_links(folder / "include", headers), _folder_of_links(folder / "lib", libraries)


def _folder_of_links(folder: Path, targets: dict[str, Path]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for link in folder.iterdir():
        if link.name not in targets or link.readlink() != targets[link.name]:
            link.unlink()
    for name, target in targets.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    return folder


def _find_toolkit(torch_cuda: str) -> Decision:
    major = torch_cuda.split(".")[0]
    seen = []
    for name, toolkit in _candidates(torch_cuda):
        version = toolkit_version(toolkit)
        if version.split(".")[0] == major:
            return Decision(
                toolkit, f"torch is built for CUDA {torch_cuda} and {name} is a CUDA {version} toolkit"
            )
        seen.append(f"{name}: {f'CUDA {version}' if version else 'no toolkit'}")
    return Decision(
        None,
        f"no CUDA {major} toolkit was found for torch's CUDA {torch_cuda} ({'; '.join(seen)}); "
        f'pip install "cuda-toolkit[nvcc,cccl]=={torch_cuda}.*" brings one',
    )


def _candidates(torch_cuda: str) -> Iterator[tuple[str, Path]]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if value := os.environ.get(variable):
            yield variable, Path(value)
    if nvcc := shutil.which("nvcc"):
        # nvcc on the PATH may be a wrapper script: it knows best where its toolkit is.
        answer = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        if top := re.search(r"^#\$ TOP=(.+)$", answer.stderr, re.MULTILINE):
            yield "nvcc on the PATH", Path(top[1]).resolve()
    yield "/usr/local/cuda", Path("/usr/local/cuda")
    if packages := package_folder(torch_cuda):
        yield "the package folder nvidia/" + packages.name, packages
