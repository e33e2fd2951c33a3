#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh --config=configs/codec.py:small --config.data.path=data/default --workdir=runs/codec
# EXTRAS=cuda uses an NVIDIA GPU. Run it again and it continues. JOB=evaluate EXTRAS=eval scores instead.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
environment text log ${EXTRAS:-}
exec python -m "ns2_jax.${JOB:-train}" "$@"
