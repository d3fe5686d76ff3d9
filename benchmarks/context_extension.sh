#!/bin/bash
# Can a model's context be extended, and by which strategy is it done?
#
# Trains a small model to look up numbers in texts of 1,024 tokens, exports it to a Hugging Face folder,
# imports that, and extends it to 8,192 tokens on two ranks (launch/configs/context-8k.txtpb) with each
# of ring, Ulysses and disaggregated attention, each from the same weights. Prints loss by position and
# passkey retrieval before and after, as tables; pictures and logs are in the folder. What it means:
# launch/configs/EXTENDING.md.
#
#   benchmarks/context_extension.sh [LONGHAUL] [FOLDER]     default: build/release/longhaul, runs/context
#
# TRIALS: texts of each length and depth. A training that is finished is not done again. Needs python3.
set -euo pipefail
longhaul=$(realpath "${1:-build/release/longhaul}")
root=$(realpath "$(dirname "$0")/..")
folder=${2:-runs/context}
mkdir -p "$folder"
cd "$folder"

# corpus NAME SHORTEST LONGEST TOKENS REPEATS: see passkey_texts.py
corpus() {
  [[ -f $1.idx ]] && return
  "$root/benchmarks/passkey_texts.py" "$1.jsonl" "${@:2}"
  "$longhaul" data prepare "$1.jsonl" --output "$1" >/dev/null
}

# train CONFIG RUN CORPUS STEPS [option ...]
train() {
  local config=$1 run=$2 corpus=$3 steps=$4
  shift 4
  "$longhaul" train --config "$root/launch/configs/$config.txtpb" --ranks 2 \
    --set "train.run_directory=$run" --set "data.path=$corpus" --set "train.steps=$steps" "$@" \
    >"$run.log" || { tail -n 1 "$run.log"; exit 1; }
  echo "$run: $(grep 'validation loss' "$run.log" | tail -n 1 | cut -c1-60)"
}

# evaluate RUN LENGTH: tables, and RUN-LENGTH.svg.
evaluate() {
  local passkeys=(--passkey --text filler.txt --lengths "1024,2048,4096,8192" --trials "${TRIALS:-4}")
  if (($2 == 1024)); then passkeys=(); fi
  "$longhaul" eval "$1" --ranks 2 --data "test-$2" --length "$2" --samples 16 --svg "$1-$2.svg" \
    "${passkeys[@]}"
}

printf 'The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. %.0s' \
  {1..200} >filler.txt
corpus texts-64 64 64 8000000 1
corpus texts-256 128 256 8000000 0.25
corpus texts-1024 256 1024 8000000 0
corpus texts-8192 8192 8192 2000000 0
corpus test-1024 1024 1024 16384 0
corpus test-8192 8192 8192 131072 0

# By lengths: looking something up is learned from few tokens, and then over more. At once from 1,024 it
# takes many times these steps.
echo "== Before: trained on 1,024 tokens, exported and imported"
train context-1k base-64 texts-64 2500 --set data.sequence_length=64 --set parallel.data=2 \
  --set train.validation_samples=256
train context-1k base-256 texts-256 800 --set data.sequence_length=256 --set parallel.data=2 \
  --set checkpoint.initial=base-64 --set train.learning_rate=2e-3
train context-1k base-1024 texts-1024 600 --set parallel.data=2 \
  --set checkpoint.initial=base-256 --set train.learning_rate=1.5e-3
if [[ ! -d imported ]]; then
  "$longhaul" checkpoint export base-1024 exported
  "$longhaul" checkpoint import exported --output imported
fi
evaluate imported 1024
evaluate imported 8192
for strategy in ring ulysses disaggregated; do
  echo
  echo "== After: extended to 8,192 tokens, $strategy"
  train context-8k "$strategy" texts-8192 120 --set checkpoint.initial=imported \
    --set "parallel.strategy=$strategy"
  evaluate "$strategy" 1024
  evaluate "$strategy" 8192
done
