#!/usr/bin/env bash
# Trains on a GKE cluster that XPK made:
#     CLUSTER=c ZONE=z PROJECT=p IMAGE=europe-docker.pkg.dev/me/ns2/tpu bash launch/xpk/train.sh [--dry-run] NAME TPU_TYPE [xSLICES] \
#         --config=configs/naturalspeech2.py:base --config.data.path=/mnt/shared/data --workdir=/mnt/shared/runs/ns2
# TPU_TYPE as XPK has it (v5p-128), x2 for two slices; STORAGE=name attaches a storage of `xpk storage` (mounted at /mnt/shared).
# Preempted (143) and bereaved (75, 134) workloads start again and continue. --dry-run only prints.
set -euo pipefail
cd "$(dirname "$0")/../.."
DRY=
if [ "${1:-}" = --dry-run ]; then DRY=1; shift; fi
if [ $# -lt 3 ]; then sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; fi
NAME=$1 TYPE=$2 SLICES=1
shift 2
if [[ $1 =~ ^x[1-9][0-9]*$ ]]; then SLICES=${1#x}; shift; fi
for name in CLUSTER ZONE PROJECT IMAGE; do [ -n "${!name:-}" ] || { echo "error: set $name, see bash launch/xpk/train.sh" >&2; exit 2; }; done
[ "$SLICES" = 1 ] || set -- "$@" --config.mesh.data="$SLICES"  # copies of the parameters: only gradients cross slices
words=(xpk workload create --cluster="$CLUSTER" --zone="$ZONE" --project="$PROJECT" --workload="$NAME" --tpu-type="$TYPE" --num-slices="$SLICES"
  --docker-image="$IMAGE" --max-restarts=1000 "--restart-on-exit-codes=75,134,143" --termination-grace-period-seconds=120
  --command="cd /ns2_jax && exec python -m ns2_jax.${JOB:-train} $(printf '%q ' "$@")")
[ -z "${STORAGE:-}" ] || words+=(--storage="$STORAGE")
if [ -n "$DRY" ]; then printf '%q ' "${words[@]}"; echo; else exec "${words[@]}"; fi
