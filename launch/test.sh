#!/usr/bin/env bash
# Every test: bash launch/test.sh [--slow] [pytest's arguments]
# Makes .venv if needed. Some tests compile for TPU, compare with flite and PESQ, or open a page: that takes a C compiler, flite and Chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
system_program flite flite "tests against its voices are left out" || true
system_program shellcheck shellcheck "the check of the scripts is left out" || true
system_program chromium chromium "the test of the server's page is left out" &&
  system_program chromedriver chromium-driver "the test of the server's page is left out" || true
command -v cc >/dev/null || install_package gcc libc6-dev python3-dev || echo "note: no C compiler; the package pesq may not install"
environment test
# Compiling uses one core: two files at a time. A process that dies or hangs ends the run rather than being waited for.
exec python -m pytest -q -n 2 --dist=loadfile --max-worker-restart=0 --timeout=1200 --timeout-method=thread --durations=15 tests "$@"
