# Sourced by the other scripts: the environment `.venv` in the repository, and programs of the system.
#     environment EXTRA...    makes .venv and installs `.[EXTRA,...]` into it, once; PYTHON=... names the interpreter
#     system_program NAME PACKAGE WHY    installs a Debian package where it can; 1 and a line where it can't

find_python() {  # the first interpreter that is new enough and starts
  local python
  for python in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.14 python3; do
    [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$python" && return
  done
  return 2
}

quiet_apt() { $1 env DEBIAN_FRONTEND=noninteractive apt-get -qq "${@:2}" >/dev/null 2>&1; }

install_package() {  # apt-get as root or with a sudo that asks nothing; silent, false where it can't
  local as=""
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] || { sudo -n true 2>/dev/null && as=sudo; } || return 1
  quiet_apt "$as" install -y --no-install-recommends "$@" && return
  quiet_apt "$as" update && quiet_apt "$as" install -y --no-install-recommends "$@"
}

system_program() {
  command -v "$1" >/dev/null && return
  echo "installing $2 with apt-get"
  install_package "$2" && command -v "$1" >/dev/null && return
  echo "note: $1 is not here and can't be installed (no apt-get, no root, or no network): $3"
  return 1
}

environment() {
  local python extras wanted mark
  extras=$(IFS=,; echo "$*")
  wanted=$(cat setup.py ns2_jax/__init__.py | cksum | tr ' ' -)
  mark=.venv/.installed-$extras-$wanted
  if [ ! -e "$mark" ]; then
    # Images of TPU VMs on Ubuntu 22.04 start with Python 3.10, and have 3.11 beside it in apt.
    python=$(find_python || { install_package python3.11 python3.11-venv && find_python; }) || {
      echo "error: no Python >= 3.11 here; install one (apt-get install python3) or set PYTHON" >&2; return 2; }
    if [ ! -x .venv/bin/python ]; then
      echo "making .venv with $("$python" --version)"
      "$python" -m venv .venv 2>/dev/null || { rm -rf .venv; install_package python3-venv && "$python" -m venv .venv; } || {
        rm -rf .venv; echo "error: $python can't make a virtual environment; apt-get install python3-venv" >&2; return 2; }
    fi
    echo "installing .[$extras]"
    .venv/bin/python -m pip install -q --disable-pip-version-check --prefer-binary -e ".[$extras]" || return
    # GE2E's weights; its wheel asks for torch, which nothing here imports.
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps resemblyzer==0.1.4 || return
    touch "$mark"
  fi
  . .venv/bin/activate
}
