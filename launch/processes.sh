#!/usr/bin/env bash
# Trains in several processes on this machine, joined on loopback: a cluster in small, for trying out what a pod does, or one process a GPU.
#     bash launch/processes.sh [--dry-run] COUNT --config=configs/codec.py:smoke --config.data.path=data/default --workdir=runs/codec
# PER_GPU=1 gives each process the GPU of its number. SIGTERM goes to all, and they save. When one ends badly the others are given a
# minute to notice; the exit code is the first bad one. 143, 75 and 134 mean: start it again. --dry-run only prints.
set -euo pipefail
cd "$(dirname "$0")/.."
DRY=
if [ "${1:-}" = --dry-run ]; then DRY=1; shift; fi
if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2; fi
COUNT=$1
shift
PORT=${PORT:-$((20000 + RANDOM % 20000))}
if [ -z "$DRY" ]; then
  . launch/environment.sh
  environment text log ${EXTRAS:+"$EXTRAS"}
fi
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < COUNT; i++)); do
  variables=(JAX_COORDINATOR_ADDRESS="localhost:$PORT" JAX_NUM_PROCESSES="$COUNT" JAX_PROCESS_ID="$i")
  [ -z "${PER_GPU:-}" ] || variables+=(CUDA_VISIBLE_DEVICES="$i")
  if [ -n "$DRY" ]; then
    echo "${variables[*]} python -m ns2_jax.${JOB:-train} $(printf '%q ' "$@")"
  else
    env "${variables[@]}" python -m "ns2_jax.${JOB:-train}" "$@" &
    pids+=($!)
  fi
done
code=0 ended=0
while [ "$ended" -lt "${#pids[@]}" ]; do
  one=0 who=
  wait -n -p who "${pids[@]}" 2>/dev/null || one=$?  # of one that has ended before it says "no such job"
  [ -n "${who:-}" ] || continue  # a signal came in between
  ended=$((ended + 1))
  if [ "$one" != 0 ] && [ "$code" = 0 ]; then
    code=$one
    { sleep 60; kill -KILL "${pids[@]}"; } >/dev/null 2>&1 &
    killer=$!
    disown "$killer"
  fi
done
[ -z "${killer:-}" ] || kill "$killer" 2>/dev/null || true
exit "$code"
