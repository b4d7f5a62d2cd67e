# Sourced by demo.sh, test.sh and .ci/run: makes .venv, installs bitsplit into it and builds the extension.
# Every step is skipped when its result is there. PYTHON chooses the interpreter (default python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MAX_JOBS="${MAX_JOBS:-$(nproc)}"
venv_python=".venv/bin/python"

say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Prints the interpreter to make .venv with. An existing .venv is kept, whatever python3 is today.
choose_python() {
  local python="${PYTHON:-python3}" wanted
  if [[ -x $venv_python && -z ${PYTHON:-} ]]; then python="$venv_python"; fi
  command -v "$python" > /dev/null || fail "there is no $python; install Python 3.11 or newer, or set PYTHON"
  wanted="$(version_of "$python")"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is Python $wanted, bitsplit needs 3.11 or newer; set PYTHON to choose another"
  if [[ -x $venv_python && $(version_of "$venv_python") != "$wanted" ]]; then
    fail ".venv holds Python $(version_of "$venv_python") but PYTHON=$PYTHON is $wanted; remove .venv first"
  fi
  printf '%s\n' "$python"
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Prints the Debian packages that are needed and not there.
missing_packages() {
  local python="$1" version compiler="${CXX:-g++}"
  version="$(version_of "$python")"
  [[ $("$compiler" -dumpversion 2> /dev/null | cut -d. -f1) -ge 11 ]] 2> /dev/null || echo g++
  command -v cmake > /dev/null || echo cmake
  echo '#include <gtest/gtest.h>' | "$compiler" -std=c++20 -x c++ -fsyntax-only - 2> /dev/null || echo libgtest-dev
  "$python" -c 'import ensurepip, venv' 2> /dev/null || echo "python$version-venv"
  "$python" -c 'import os, sysconfig, sys
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || echo "python$version-dev"
}

need_packages() {
  local missing
  missing="$(missing_packages "$1" | tr '\n' ' ')"
  [[ -n $missing ]] || return 0
  if [[ $(id -u) == 0 ]] && command -v apt-get > /dev/null; then
    say "installing $missing"
    apt-get update -qq
    # shellcheck disable=SC2086  # several words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing > /dev/null
    missing="$(missing_packages "$1" | tr '\n' ' ')"
    [[ -z $missing ]] || fail "still missing or too old (g++ must be 11 or newer): $missing"
  else
    fail "missing or too old (g++ must be 11 or newer); install with:  sudo apt-get install -y ${missing% }"
  fi
}

# Installs what pyproject.toml names, and a CUDA toolkit from packages when torch wants one and none is there.
install_packages() {
  local wanted stamp=.venv/bitsplit-installed
  wanted="$(sha256sum < pyproject.toml)"
  [[ ! -e $stamp || $(< "$stamp") != "$wanted" ]] || return 0
  say "installing packages into .venv (the first time takes minutes)"
  "$venv_python" - << 'PY' > .venv/requirements.txt
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))
print("\n".join(project["build-system"]["requires"] + project["project"]["dependencies"]))
PY
  "$venv_python" -m pip install -q --disable-pip-version-check -r .venv/requirements.txt
  install_toolkit
  build
  "$venv_python" -m pip install -q --disable-pip-version-check --no-build-isolation -e ".[all]"
  printf '%s\n' "$wanted" > "$stamp"
}

install_toolkit() {
  local cuda
  [[ ${BITSPLIT_CUDA:-auto} != 0 ]] || return 0
  cuda="$(PYTHONPATH=scripts "$venv_python" -c 'import cuda_toolkit, torch
cuda = torch.version.cuda
print(cuda if cuda and cuda_toolkit.decide("auto", cuda).toolkit is None else "")')"
  [[ -n $cuda ]] || return 0
  say "installing the CUDA $cuda compiler from packages"
  "$venv_python" -m pip install -q --disable-pip-version-check "cuda-toolkit[nvcc,cccl]==$cuda.*"
}

# Sources, torch and the decision about CUDA are those of the module: told from its bytes, because importing torch
# takes seconds.
build_is_current() {
  [[ ${BITSPLIT_CUDA:-auto} == auto ]] && "$venv_python" - << 'PY'
import pathlib, runpy, sys, sysconfig
sys.path.insert(0, "scripts")
from cuda_toolkit import decide
module = pathlib.Path("python/bitsplit/_C" + sysconfig.get_config_var("EXT_SUFFIX"))
torch = runpy.run_path(str(pathlib.Path(sysconfig.get_path("platlib"), "torch/version.py")))
facts = [
    runpy.run_path("python/bitsplit/_build_info.py")["source_hash"](pathlib.Path.cwd()),
    torch["__version__"],
    decide("auto", torch["cuda"]).reason,
]
sys.exit(not (module.exists() and all(fact.encode() in module.read_bytes() for fact in facts)))
PY
}

build() {
  say "building the extension"
  "$venv_python" setup.py build_ext --inplace
}

prepare() {
  local python
  python="$(choose_python)"
  need_packages "$python"
  [[ -x $venv_python ]] || { say "making .venv"; "$python" -m venv .venv; }
  export PATH="$PWD/.venv/bin:$PATH"  # torch looks for ninja there
  install_packages
  build_is_current || build
}
