#!/usr/bin/env bash
# Checks everything CUDA on a machine with a card, in one call: builds for that card, runs all tests with skipped
# CUDA tests turned into failures, compute-sanitizer over the operators' CUDA tests, and the benchmarks.
#
#   scripts/gpu_check.sh [REPORT [STEP...]]      steps: build tests memcheck racecheck benchmarks (default: all)
#
# Nothing is installed: it uses the packages of PYTHON (default python3) and of PYTHONPATH. What is printed also
# goes to REPORT (default $OUT/gpu_check.txt, or build/gpu_check.txt). Later steps run even when one failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
report="${1:-${OUT:-build}/gpu_check.txt}"
steps=("${@:2}")
[[ ${#steps[@]} -gt 0 ]] || steps=(build tests memcheck racecheck benchmarks)
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export BITSPLIT_CUDA=1 BITSPLIT_REQUIRE_CUDA=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}"

build() {
  "$python" setup.py build_ext --inplace && "$python" -c 'import bitsplit
for fact in sorted(bitsplit.build_info().items()): print("%s: %s" % fact)'
}

tests() {
  cpp_tests && "$python" -m pytest -q --durations=10 $(parallel)
}

# With pytest-xdist tests run side by side.
parallel() {
  ! "$python" -c 'import xdist' 2> /dev/null || echo "-n $MAX_JOBS"
}

# The C++ tests need no card; a machine without GoogleTest leaves them to the ordinary test run.
cpp_tests() {
  if ! echo '#include <gtest/gtest.h>' | g++ -std=c++20 -x c++ -fsyntax-only - 2> /dev/null; then
    echo "no GoogleTest here: the C++ tests are left out"
    return 0
  fi
  cmake -S . -B build/tests -DPython3_EXECUTABLE="$(command -v "$python")" > /dev/null &&
    cmake --build build/tests --parallel "$MAX_JOBS" &&
    ctest --test-dir build/tests --output-on-failure
}

# Without torch's caching allocator, so that an access just beyond a tensor is seen. Test files run side by side.
sanitize() {
  local logs="build/$1"
  sanitizer="$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)"
  export sanitizer python
  rm -rf "$logs" && mkdir -p "$logs"
  "$python" -m pytest -q -m cuda --collect-only | sed -n 's/::.*//p' | sort -u |
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 xargs -P "$MAX_JOBS" -I FILE bash -c 'log="$0/$(basename FILE).txt"
      "$sanitizer" --tool "$@" --error-exitcode 9 --target-processes application-only \
        "$python" -m pytest -q -m cuda FILE > "$log" 2>&1
      status=$?
      echo "$(basename FILE): exit $status, $SECONDS s, $(grep -E " passed|SUMMARY" "$log" | tr "\n" " ")"
      [[ $status == 0 ]] || tail -n 40 "$log"
      exit $status' "$logs" "$@"
}
memcheck() { sanitize memcheck --report-api-errors no; }
racecheck() { sanitize racecheck; }

# Those that can be told to run on the card; those that need real data only where BITSPLIT_TEST_DATA names it.
benchmarks() {
  local file input data="${BITSPLIT_TEST_DATA:-}" status=0
  for file in $(grep -l -e '"--device"' benchmarks/*.py); do
    case "$(grep -o -E '"(data|photos)", type=Path' "$file")" in
      '"data"'*) input="$data" ;;
      '"photos"'*) input="${data:+$data/imagenet-sample}" ;;
      *) input="-" ;;
    esac
    echo "-- $file"
    if [[ -z $input ]]; then
      echo "left out: set BITSPLIT_TEST_DATA"
    elif [[ $input == - ]]; then
      "$python" "$file" --device cuda || status=1
    else
      "$python" "$file" "$input" --device cuda || status=1
    fi
  done
  return "$status"
}

check() {
  local step started failed=()
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  "$python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
  git describe --always --dirty 2> /dev/null
  for step in "${steps[@]}"; do
    printf '\n== %s\n' "$step"
    started=$SECONDS
    "$step" || failed+=("$step")
    printf '== %s took %d s\n' "$step" "$((SECONDS - started))"
  done
  printf '\n== %d of %d steps passed%s\n' "$((${#steps[@]} - ${#failed[@]}))" "${#steps[@]}" \
    "${failed[*]:+, failed: ${failed[*]}}"
  [[ ${#failed[@]} -eq 0 ]]
}

for step in "${steps[@]}"; do
  [[ $step =~ ^(build|tests|memcheck|racecheck|benchmarks)$ ]] || { echo "no such step: $step" >&2; exit 2; }
done
mkdir -p "$(dirname "$report")"
check 2>&1 | tee "$report"
