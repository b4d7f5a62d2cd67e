#!/usr/bin/env bash
# Makes .venv when it is missing, builds, and runs `bitsplit demo` with the arguments given.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare
exec .venv/bin/bitsplit demo "$@"
