#!/usr/bin/env bash
# The stages of a corpus on a cluster, with Apache Beam: bash launch/beam.sh [--dry-run] RUNNER --config=... --stages=... [-- more options]
#     bash launch/beam.sh local --config=configs/data/ljspeech.py --config.root=LJSpeech-1.1 --config.out=data/lj --stages=ingest,index
#     PROJECT=p REGION=r BUCKET=gs://b IMAGE=i bash launch/beam.sh dataflow --config=configs/data/mls.py --config.root=/mnt/mls \
#         --config.out=/mnt/data/mls --stages=ingest,normalise,phonemise,index -- --max_num_workers=200
#     MASTER=host:8081 bash launch/beam.sh flink ...        MASTER=spark://host:7077 bash launch/beam.sh spark ...
# The corpus and the data set are on a disk that this machine and all workers mount at the same path (NFS; for Dataflow a bucket that
# the image mounts), and this package with its `text`, `eval` and `beam` extras is in IMAGE, a container of Beam's SDK. Flink and Spark
# start WORKERS of it on each machine, or with ENVIRONMENT=/path/to/boot that program instead; here they need Java for Beam's job server.
set -euo pipefail
cd "$(dirname "$0")/.."
RUN=
if [ "${1:-}" = --dry-run ]; then RUN="echo"; shift; fi
if [ $# -lt 2 ]; then sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; fi
RUNNER=$1
shift
flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do flags+=("$1"); shift; done
[ $# -gt 0 ] && shift
container=(--environment_type=DOCKER "--environment_config=${IMAGE:-ns2_jax}")
[ -z "${ENVIRONMENT:-}" ] || container=(--environment_type=PROCESS "--environment_config={\"command\": \"$ENVIRONMENT\"}")
case $RUNNER in flink | spark) [ -n "${MASTER:-}" ] || { echo "error: set MASTER, see bash launch/beam.sh" >&2; exit 2; } ;; esac
case $RUNNER in
  local) options=(--direct_num_workers="${WORKERS:-$(nproc)}" --direct_running_mode=multi_processing) ;;
  dataflow)
    for name in PROJECT REGION BUCKET IMAGE; do [ -n "${!name:-}" ] || { echo "error: set $name, see bash launch/beam.sh" >&2; exit 2; }; done
    options=(--runner=DataflowRunner --project="$PROJECT" --region="$REGION" --temp_location="$BUCKET/temp" --staging_location="$BUCKET/staging"
      --sdk_container_image="$IMAGE" --sdk_location=container --experiments=use_runner_v2 --job_name="ns2-jax-$(date +%s)") ;;
  flink) options=(--runner=FlinkRunner --flink_master="$MASTER" --sdk_worker_parallelism="${WORKERS:-1}" "${container[@]}") ;;
  spark) options=(--runner=SparkRunner --spark_master_url="$MASTER" --sdk_worker_parallelism="${WORKERS:-1}" "${container[@]}") ;;
  *) echo "error: $RUNNER is no runner; there are local, dataflow, flink, spark" >&2; exit 2 ;;
esac
if [ -z "$RUN" ]; then
  . launch/environment.sh
  environment text eval beam
fi
$RUN exec python -m data_pipelines.run "${flags[@]}" --runner=beam -- "${options[@]}" "$@"
