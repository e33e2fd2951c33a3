#!/usr/bin/env bash
# Trains on a TPU VM or a whole slice, the same command on every host (JOB=evaluate EXTRAS=eval scores there instead):
#     bash launch/tpu_vm.sh [--dry-run] NAME ZONE --config=configs/naturalspeech2.py:base \
#         --config.data.path=/mnt/shared/data --workdir=/mnt/shared/runs/ns2
# The slice exists already (gcloud compute tpus tpu-vm create), gcloud is logged in, and all hosts mount /mnt/shared (NFS or a
# bucket). Preempted hosts save on SIGTERM; the same command continues, also on another size of slice. --dry-run only prints.
# Training ends with this connection: run it where none drops, in tmux on a machine that stays on (a small VM of the zone).
set -euo pipefail
cd "$(dirname "$0")/.."
DRY=
if [ "${1:-}" = --dry-run ]; then DRY=1; shift; fi
if [ $# -lt 3 ]; then sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; fi
NAME=$1 ZONE=$2
shift 2
run() { if [ -n "$DRY" ]; then printf '%s\n' "${*@Q}"; else "$@"; fi; }
ARCHIVE=$(mktemp -t ns2_jax.XXXXXX.tar.gz)
trap 'rm -f "$ARCHIVE"' EXIT
run tar -czf "$ARCHIVE" --exclude=__pycache__ setup.py README.md LICENSE ns2_jax configs data_pipelines launch
run gcloud compute tpus tpu-vm scp "$ARCHIVE" "$NAME:ns2_jax.tar.gz" --zone="$ZONE" --worker=all
run gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="mkdir -p ns2_jax && tar -xzf ns2_jax.tar.gz -C ns2_jax &&\
 cd ns2_jax && . launch/environment.sh && environment tpu text log ${EXTRAS:-} && exec python -m ns2_jax.${JOB:-train} $(printf '%q ' "$@")"
