#!/usr/bin/env bash
# Makes .venv when it is missing, builds, and runs all tests; arguments go to pytest.
# The C++ tests run plain and under ThreadSanitizer and AddressSanitizer.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare

for sanitizer in "" thread address; do
  folder="build/tests${sanitizer:+-$sanitizer}"
  say "C++ tests${sanitizer:+ under the $sanitizer sanitizer}"
  cmake -S . -B "$folder" -DBITSPLIT_SANITIZE="$sanitizer" > /dev/null
  cmake --build "$folder" --parallel "$MAX_JOBS" -- --no-print-directory
  ctest --test-dir "$folder" --output-on-failure
done

say "Python tests"
exec .venv/bin/python -m pytest "$@"
