#!/usr/bin/env bash
# Trains on this machine:
#     bash launch/local.sh [--dry-run] --config=configs/codec.py:small --config.data.path=data/default --workdir=runs/codec
# EXTRAS=cuda uses an NVIDIA GPU. Run it again and it continues. JOB=evaluate EXTRAS=eval scores instead. --dry-run only prints.
set -euo pipefail
cd "$(dirname "$0")/.."
DRY=
if [ "${1:-}" = --dry-run ]; then DRY=1; shift; fi
if [ $# -lt 1 ]; then sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2; fi
words=(python -m "ns2_jax.${JOB:-train}" "$@")
if [ -n "$DRY" ]; then printf '%q ' "${words[@]}"; echo; exit; fi
. launch/environment.sh
environment text log ${EXTRAS:-}
exec "${words[@]}"
