#!/usr/bin/env bash
# Trains on GKE: fills launch/jobset.yaml in and applies it.
#     IMAGE=europe-docker.pkg.dev/me/ns2/tpu CLAIM=shared bash launch/jobset.sh [--dry-run] NAME FAMILY:SHAPE [xSLICES] \
#         --config=configs/naturalspeech2.py:base --config.data.path=/mnt/shared/data --workdir=/mnt/shared/runs/ns2
# FAMILY:SHAPE as in v5p:4x4x4, x2 for two slices. IMAGE is made from launch/Dockerfile; CLAIM is a volume claim that all pods can write,
# mounted at /mnt/shared. The cluster has JobSet and node pools of the topology. --dry-run prints the manifest and the command.
# shellcheck disable=SC2034  # variables are read by their names, below
set -euo pipefail
cd "$(dirname "$0")/.."
DRY=
if [ "${1:-}" = --dry-run ]; then DRY=1; shift; fi
if [ $# -lt 3 ]; then sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; fi
NAME=$1 FAMILY=${2%%:*} TOPOLOGY=${2#*:} SLICES=1 CHIPS=4
shift 2
if [[ $1 =~ ^x[1-9][0-9]*$ ]]; then SLICES=${1#x}; shift; fi
case $FAMILY in
  v4) ACCELERATOR=tpu-v4-podslice ;;
  v5e) ACCELERATOR=tpu-v5-lite-podslice ;;
  v5p) ACCELERATOR=tpu-v5p-slice ;;
  v6e) ACCELERATOR=tpu-v6e-slice ;;
  tpu7x) ACCELERATOR=tpu7x ;;
  *) echo "error: $FAMILY is no family of TPU; there are v4 v5e v5p v6e tpu7x, as in v5p:4x4x4" >&2; exit 2 ;;
esac
[[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+)+$ ]] || { echo "error: $TOPOLOGY is no shape of a slice, as in v5p:4x4x4" >&2; exit 2; }
for name in IMAGE CLAIM; do [ -n "${!name:-}" ] || { echo "error: set $name, see bash launch/jobset.sh" >&2; exit 2; }; done
ALL=$((${TOPOLOGY//x/*}))
[ "$ALL" -ge "$CHIPS" ] || CHIPS=$ALL
HOSTS=$((ALL / CHIPS))
[ "$SLICES" = 1 ] || set -- "$@" --config.mesh.data="$SLICES"  # copies of the parameters: only gradients cross slices
ARGUMENTS='['
for word; do word=${word//\\/\\\\}; ARGUMENTS+="${ARGUMENTS:+ }\"${word//\"/\\\"}\","; done
ARGUMENTS="${ARGUMENTS%,} ]"
manifest=$(<launch/jobset.yaml)
for name in NAME SLICES HOSTS ACCELERATOR TOPOLOGY IMAGE ARGUMENTS CHIPS CLAIM; do manifest=${manifest//"\${$name}"/"${!name}"}; done
if [ -n "$DRY" ]; then
  printf '%s\n# kubectl apply -f -\n' "$manifest"
else
  printf '%s\n' "$manifest" | kubectl apply -f -
fi
