"""The build: what decides about CUDA, what a stale module does, whether the list of sources is complete."""

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from bitsplit import _build_info

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import cuda_toolkit  # noqa: E402


def make_toolkit(folder: Path, version: str) -> Path:
    """A folder that looks like a toolkit: its nvcc answers --version."""
    (folder / "bin").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "include" / "cuda_runtime.h").touch()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.88'\n")
    nvcc.chmod(0o755)
    return folder


@pytest.fixture
def only_candidate(monkeypatch):
    """Makes one folder the only place where a toolkit is looked for."""

    def choose(folder: Path) -> None:
        monkeypatch.setattr(cuda_toolkit, "_candidates", lambda torch_cuda: [("the folder", folder)])

    return choose


# ---- the decision ------------------------------------------------------------------------------------------


def test_zero_is_a_cpu_build_whatever_is_there():
    assert cuda_toolkit.decide("0", "13.2") == cuda_toolkit.Decision(None, "BITSPLIT_CUDA=0")


def test_auto_needs_a_cuda_torch(only_candidate, tmp_path):
    only_candidate(make_toolkit(tmp_path / "cuda", "13.0"))
    decision = cuda_toolkit.decide("auto", None)
    assert decision.toolkit is None and "CPU build" in decision.reason


@pytest.mark.parametrize("version, fits", [("13.0", True), ("13.4", True), ("12.9", False), ("1.3", False)])
def test_auto_takes_a_toolkit_of_torchs_major_version(only_candidate, tmp_path, version, fits):
    only_candidate(make_toolkit(tmp_path / "cuda", version))
    decision = cuda_toolkit.decide("auto", "13.2")
    assert (decision.toolkit == tmp_path / "cuda") is fits
    assert version in decision.reason and "13.2" in decision.reason


@pytest.mark.parametrize("missing", ["bin/nvcc", "include/cuda_runtime.h"])
def test_half_a_toolkit_is_none(only_candidate, tmp_path, missing):
    toolkit = make_toolkit(tmp_path / "cuda", "13.2")
    (toolkit / missing).unlink()
    only_candidate(toolkit)
    assert cuda_toolkit.decide("auto", "13.2").toolkit is None


def test_one_insists_and_names_the_remedy(only_candidate, tmp_path):
    only_candidate(tmp_path)
    with pytest.raises(
        SystemExit, match=r'BITSPLIT_CUDA=1 but .*pip install "cuda-toolkit\[nvcc,cccl\]==13.2'
    ):
        cuda_toolkit.decide("1", "13.2")
    with pytest.raises(SystemExit, match="BITSPLIT_CUDA=1 but this torch is a CPU build"):
        cuda_toolkit.decide("1", None)


def test_other_words_are_refused():
    with pytest.raises(SystemExit, match="must be auto, 1 or 0, got 'yes'"):
        cuda_toolkit.decide("yes", "13.2")


def test_cuda_home_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "mine", "13.1")))
    decision = cuda_toolkit.decide("auto", "13.2")
    assert decision.toolkit == tmp_path / "mine" and "CUDA_HOME" in decision.reason


# ---- the gaps ----------------------------------------------------------------------------------------------


def make_packages(folder: Path) -> Path:
    for name in (
        "include/cublas_v2.h",
        "include/driver_types.h",
        "lib/libcudart.so.13",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_bare_system_toolkit_gets_only_what_it_lacks(tmp_path):
    toolkit, packages = make_toolkit(tmp_path / "cuda", "13.0"), make_packages(tmp_path / "cu13")
    (toolkit / "lib64").mkdir()
    (toolkit / "lib64" / "libcudart.so").touch()
    include, lib = cuda_toolkit.bridge_gaps(toolkit, packages, tmp_path / "links")
    # driver_types.h belongs to the runtime: the toolkit's own must be found, never the packages'.
    assert [path.name for path in include.iterdir()] == ["cublas_v2.h"]
    assert list(lib.iterdir()) == []


def test_a_packaged_toolkit_gets_linkable_names(tmp_path):
    packages = make_packages(make_toolkit(tmp_path / "cu13", "13.2"))
    (tmp_path / "links" / "lib").mkdir(parents=True)
    (tmp_path / "links" / "lib" / "libcudart.so").symlink_to(tmp_path / "of an older environment")
    include, lib = cuda_toolkit.bridge_gaps(packages, packages, tmp_path / "links")
    assert list(include.iterdir()) == []
    assert {path.name: path.resolve().name for path in lib.iterdir()} == {"libcudart.so": "libcudart.so.13"}


# ---- a module that does not fit ----------------------------------------------------------------------------


def pretend_module(monkeypatch, **changes: str) -> None:
    facts = {"torch": torch.__version__, "sources": _build_info.source_hash(ROOT)} | changes
    module = types.SimpleNamespace(build_info=lambda: facts)
    monkeypatch.setitem(sys.modules, "bitsplit._C", module)


def test_a_fitting_module_loads_silently(monkeypatch, recwarn):
    pretend_module(monkeypatch)
    assert _build_info.load_extension().build_info()["torch"] == torch.__version__
    assert not recwarn.list


def test_another_torch_is_an_error_that_names_the_command(monkeypatch):
    pretend_module(monkeypatch, torch="2.10.0")
    with pytest.raises(
        ImportError, match=r"built for torch 2\.10\.0, this is .*setup.py build_ext --inplace"
    ):
        _build_info.load_extension()


def test_changed_sources_warn_with_the_command(monkeypatch):
    pretend_module(monkeypatch, sources="older")
    with pytest.warns(
        UserWarning, match="sources changed since they were built; run `python setup.py build_ext"
    ):
        _build_info.load_extension()


def test_a_missing_module_is_an_error_that_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsplit._C", None)
    with pytest.raises(
        ImportError, match="does not load with torch .*run `python setup.py build_ext --inplace`"
    ):
        _build_info.load_extension()


def test_the_hash_follows_every_source(tmp_path):
    for name in ("csrc/a.cpp", "csrc/core/b.h", "setup.py", "scripts/cuda_toolkit.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    seen = {_build_info.source_hash(tmp_path)}
    for name in ("csrc/a.cpp", "csrc/core/b.h", "setup.py"):
        (tmp_path / name).write_text("2")
        seen.add(_build_info.source_hash(tmp_path))
    (tmp_path / "csrc/core/b.h").rename(tmp_path / "csrc/core/c.h")
    seen.add(_build_info.source_hash(tmp_path))
    (tmp_path / "csrc/core/notes.md").write_text("not compiled")
    seen.add(_build_info.source_hash(tmp_path))
    assert len(seen) == 5


# ---- this checkout -----------------------------------------------------------------------------------------


def test_every_source_is_listed_once():
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    files = [path for pattern in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(pattern)]
    assert sorted(listed) == sorted(path.relative_to(ROOT / "csrc").as_posix() for path in files)


def test_core_and_kernels_know_nothing_of_torch():
    bodies = [*(ROOT / "csrc" / "core").glob("*.h"), *(ROOT / "csrc" / "ops").rglob("*_kernels.cuh")]
    assert bodies
    for path in bodies:
        assert not re.search(r"#include <(ATen|c10|torch)/", path.read_text()), path


def test_build_info_tells_how_the_module_was_built():
    info = _build_info.build_info()
    assert info["torch"] == torch.__version__
    assert info["cuda"] == "no" or info["cuda"].split(".")[0] == str(torch.version.cuda).split(".")[0]
    assert bool(info["arch_list"]) == (info["cuda"] != "no")
    assert info["cuda_reason"] and info["compiler"]
    assert "-ffp-contract=off" in info["flags"] and "-march" not in info["flags"]


def test_one_openmp_runtime():
    """A second libgomp would not obey torch.set_num_threads."""
    program = (
        "from bitsplit._build_info import load_extension; load_extension();"
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line})"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": "python"},
        cwd=ROOT,
    )
    assert answer.stdout.count("libgomp") <= 1, answer.stdout
