#!/usr/bin/env bash
# Whether TensorFlow reads our shards as we do: bash launch/tensorflow_check.sh DATA [FOLDER]
# FOLDER (default: a temporary one) gets a virtual environment of its own with TensorFlow, which nothing here depends on; then every
# shard of DATA is read by both and compared, and written again by TensorFlow: the file must have the same bytes.
# Last run with TensorFlow 2.21.0 on 18 shards of meta, audio, text, phones, f0 and codes in ten bits (72 records): the same.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 1 ] || [ ! -e "$1/manifest.json" ]; then sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 2; fi
DATA=$1 FOLDER=${2:-}
if [ -z "$FOLDER" ]; then FOLDER=$(mktemp -d); trap 'rm -rf "$FOLDER"' EXIT; fi
OURS=$(command -v python) || { echo "error: no python on the PATH; activate the environment of this repository" >&2; exit 2; }
if ! "$FOLDER/bin/python" -c "import tensorflow" 2>/dev/null; then
  "$OURS" -m venv "$FOLDER"
  "$FOLDER/bin/pip" install -q --disable-pip-version-check tensorflow-cpu
fi
"$OURS" -m launch.tensorflow_check ours "$DATA" >"$FOLDER/ours.jsonl"
TF_CPP_MIN_LOG_LEVEL=3 "$FOLDER/bin/python" launch/tensorflow_check.py tensorflow "$DATA" >"$FOLDER/tensorflow.jsonl"
cmp "$FOLDER/ours.jsonl" "$FOLDER/tensorflow.jsonl"
"$OURS" -m launch.tensorflow_check summary "$FOLDER/ours.jsonl"
echo "the same in $("$FOLDER/bin/python" -c 'import tensorflow as tf; print("TensorFlow", tf.__version__)' 2>/dev/null)"
