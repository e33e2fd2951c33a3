#!/usr/bin/env bash
# Every test: bash launch/test.sh [--slow] [pytest's arguments]
# Makes .venv if needed. Some tests compile for TPU and compare with flite and PESQ: that takes a C compiler and flite.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
system_program flite flite "tests against its voices are left out" || true
system_program shellcheck shellcheck "the check of the scripts is left out" || true
command -v cc >/dev/null || install_package gcc libc6-dev python3-dev || echo "note: no C compiler; the package pesq may not install"
environment test
exec python -m pytest -q -n 2 --dist=loadfile --durations=15 tests "$@"  # compiling uses one core: two files at a time
