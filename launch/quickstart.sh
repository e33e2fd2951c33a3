#!/usr/bin/env bash
# From an empty machine to a trained, evaluated, speaking NaturalSpeech 2: bash launch/quickstart.sh [--minutes=20]
# The minutes include the installation; the trainings get what the rest leaves. Everything lies in runs/quickstart; run it
# again and it continues where it stopped. With other minutes it starts anew and keeps the earlier one beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
BEGAN=$(date +%s)
MINUTES=20
for argument; do
  case $argument in
    --minutes=*) MINUTES=${argument#*=} ;;
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit ;;
    *) echo "error: unknown argument $argument; usage: bash launch/quickstart.sh [--minutes=20]" >&2; exit 2 ;;
  esac
done
[[ $MINUTES =~ ^[0-9]+([.][0-9]+)?$ ]] || { echo "error: --minutes=$MINUTES is not a number of minutes" >&2; exit 2; }

. launch/environment.sh
OUT=runs/quickstart
system_program flite flite "going on with espeak-ng alone: its voices are buzzy, and the recogniser hardly understands them" || true
environment text quickstart
trap 'if [ -d $OUT ]; then echo $(($(date +%s) - BEGAN)) >>$OUT/starts; fi' EXIT  # the report adds them up
plan() { python -m launch.quickstart "$@" --out=$OUT --minutes="$MINUTES" --began="$BEGAN"; }

say() { printf '\n== %s (%s of %s min): %s\n' "$1" "$(($(date +%s) - BEGAN))s" "$MINUTES" "${*:2}"; }
stage() {  # NAME COMMAND...: once; what it says is also in logs/NAME.log
  local name=$1 since=$SECONDS
  shift
  if [ -e "$OUT/done/$name" ]; then echo "== $name: done before"; return; fi
  say "$name" "$*"
  "$@" 2>&1 | tee -a "$OUT/logs/$name.log"
  echo $((SECONDS - since)) >"$OUT/done/$name"
}
train() {  # NAME FLAGS...: a few steps to time them, then as many as fit; SIGTERM at the limit saves and ends
  local name=$1 code=0
  shift
  python -m ns2_jax.train "$@" --workdir=$OUT/$name --config.train.steps="$PROBE" --config.train.log_every=5
  local sizes
  sizes=$(plan steps "$name")
  eval "$sizes"  # STEPS EVERY SAVE LIMIT
  timeout --preserve-status -s TERM "$LIMIT" \
    python -m ns2_jax.train "$@" --workdir=$OUT/$name --config.train.steps="$STEPS" --config.train.log_every="$EVERY" \
    --config.train.save_every="$SAVE" || code=$?
  [ $code = 143 ] && echo "the time of this training is used up: going on with the steps it made" && code=0
  return $code
}

sizes=$(plan begin)
eval "$sizes"  # SIZE HOURS UTTERANCES SAMPLER PROBE WARMUP EMA BUCKETS; from plan.json when it exists
echo "installed after $(($(date +%s) - BEGAN)) s; $HOURS h of corpus, models of size $SIZE"

SHORT=(--config.data.path="$OUT/data" --config.optim.schedule=constant --config.optim.warmup="$WARMUP" --config.train.ema="$EMA")
stage corpus python -m data_pipelines.synth --out=$OUT/data --hours="$HOURS" --seed=0
# Minutes are too few for a discriminator to help.
stage codec train codec --config=configs/codec.py:"$SIZE" "${SHORT[@]}" --config.model.adversarial_from=1000000
stage export_codec python -m ns2_jax.export --workdir=$OUT/codec --out=$OUT/export/codec
stage encode python -m data_pipelines.encode --data=$OUT/data --codec=$OUT/export/codec
stage naturalspeech2 train naturalspeech2 --config=configs/naturalspeech2.py:"$SIZE" "${SHORT[@]}" \
  --config.init_from="{'rest/codec': '$OUT/export/codec'}" --config.data.buckets="$BUCKETS"
stage export python -m ns2_jax.export --workdir=$OUT/naturalspeech2 --out=$OUT/export/naturalspeech2 --codec=$OUT/export/codec
stage evaluate python -m ns2_jax.evaluate --model=$OUT/export/naturalspeech2 --data=$OUT/data --out=$OUT/scores --limit="$UTTERANCES" \
  --steps="$SAMPLER" --save_audio
stage prompt plan prompt  # a recording of the held-out voice, and the sentence
stage speak python -m ns2_jax.synthesize --model=$OUT/export/naturalspeech2 --text="$(cat $OUT/sentence.txt)" --prompt=$OUT/prompt.wav \
  --out=$OUT/speech.wav --steps="$SAMPLER"
plan report
