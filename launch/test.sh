#!/usr/bin/env bash
# Every test: bash launch/test.sh [--slow]; other arguments go to pytest.
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
export PYTEST_ADDOPTS="--timeout=1200 --timeout-method=thread ${PYTEST_ADDOPTS:-}" # what hangs is ended rather than waited for
[ $# = 0 ] || [ "$*" = --slow ] || exec python -m pytest -q "$@"

# Compiling uses one core: two processes at a time. Each takes a few files: now and then jaxlib dies in a process that has compiled for long.
# Files whose process a signal ended are run once more, which is said.
some() {
  local log code again
  log=$(mktemp "$logs/XXXXXX")
  for again in yes no; do
    code=0
    python -m pytest -q -p no:cacheprovider --durations=3 --durations-min=30 "$@" >"$log" 2>&1 || code=$?
    [ "$code" -ge 128 ] && [ "$again" = yes ] || break
    grep -vE '^Extension modules' "$log" | tail -n 80
    echo "note: signal $((code - 128)) ended it; once more: $*"
  done
  case $code in
    0 | 5) grep -E '^[0-9.]+s (call|setup)|^[0-9]+ (passed|skipped|deselected)|^no tests' "$log" || true ;; # 5: none of them is left
    *) cat "$log"; echo "failed, exit code $code: $*"; return 1 ;;
  esac
}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export -f some
export logs
find tests -name 'test_*.py' | LC_ALL=C sort -r | xargs -n 4 -P 2 bash -c 'some "$@"' some "$@" 2>&1 | tee "$logs/all" && code=0 || code=1
count() { grep -ohE "[0-9]+ $1" "$logs/all" | awk '{ n += $1 } END { print n + 0 }'; }
echo "$(count passed) passed, $(count failed) failed"
exit "$code"
