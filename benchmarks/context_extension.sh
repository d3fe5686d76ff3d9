#!/bin/bash
# Can a model's context be extended, and by which strategy is it done?
#
# Trains a small model on texts of 1,024 tokens (launch/configs/context-1k.txtpb), then extends it to
# 8,192 on two ranks (context-8k.txtpb) with each of ring, Ulysses and disaggregated attention, each
# from the same weights, and prints loss by position and passkey retrieval before and after, as tables;
# pictures and logs are in the folder. What it means: launch/configs/EXTENDING.md.
#
#   benchmarks/context_extension.sh [LONGHAUL] [FOLDER]     default: build/release/longhaul, runs/context
#
# BASE_STEPS, STEPS: of the two trainings; the default shows loss by position, while finding keys takes
# many times the first one's tokens to learn. TRIALS: texts of each length and depth. A training that is
# finished is not done again. Needs python3.
set -euo pipefail
longhaul=$(realpath "${1:-build/release/longhaul}")
configs=$(realpath "$(dirname "$0")/../launch/configs")
folder=${2:-runs/context}
mkdir -p "$folder"
cd "$folder"

# corpus NAME LENGTH TEXTS: each text is as long as a sample. It says a number of five digits among
# sentences that say nothing, and asks for it once or more.
corpus() {
  [[ -f $1.idx ]] && return
  python3 - "$@" <<'END'
import json, random, sys

FILLER = ("The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ")
name, length, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
source = random.Random(name)


def text():
    key = source.randrange(10000, 100000)
    needle = f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"
    question = f"\nWhat is the pass key? The pass key is {key}.\n"
    questions = source.randrange(1, 10)
    size = length - len(needle) - questions * len(question)
    begin = source.randrange(len(FILLER))
    filler = (FILLER * (size // len(FILLER) + 2))[begin:begin + size]
    asked = sorted(source.randrange(size + 1) for _ in range(questions))
    asked[-1] = size
    parts, last = [], 0
    for at, words in [(source.randrange(asked[0] + 1), needle)] + [(at, question) for at in asked]:
        parts += [filler[last:at], words]
        last = at
    return "".join(parts)


with open(name + ".jsonl", "w", encoding="ascii") as out:
    for _ in range(count):
        out.write(json.dumps({"text": text()}) + "\n")
with open("filler.txt", "w", encoding="ascii") as out:
    out.write(FILLER * 200)
END
  "$longhaul" data prepare "$1.jsonl" --output "$1" >/dev/null
}

# train CONFIG RUN [option ...]
train() {
  local config=$1 run=$2
  shift 2
  "$longhaul" train --config "$configs/$config.txtpb" --ranks 2 --set "train.run_directory=$run" "$@" \
    >"$run.log" || { tail -n 1 "$run.log"; exit 1; }
  grep 'validation loss' "$run.log" | tail -n 1 || true  # none if it was finished before
}

# evaluate RUN LENGTH: tables, and RUN-LENGTH.svg.
evaluate() {
  local passkeys=(--passkey --text filler.txt --lengths "1024,2048,4096,8192" --trials "${TRIALS:-3}")
  if (($2 == 1024)); then passkeys=(); fi
  "$longhaul" eval "$1" --ranks 2 --data "context-$(($2 / 1024))k-test" --length "$2" --samples 16 \
    --svg "$1-$2.svg" "${passkeys[@]}"
}

corpus context-1k 1024 6000
corpus context-8k 8192 600
corpus context-1k-test 1024 16
corpus context-8k-test 8192 16

echo "== Before: trained on 1,024 tokens"
train context-1k before --set data.path=context-1k --set "train.steps=${BASE_STEPS:-900}" \
  --set parallel.data=2
evaluate before 1024
evaluate before 8192
for strategy in ring ulysses disaggregated; do
  echo
  echo "== After: extended to 8,192 tokens, $strategy"
  train context-8k "$strategy" --set data.path=context-8k --set checkpoint.initial=before \
    --set "train.steps=${STEPS:-60}" --set "parallel.strategy=$strategy"
  evaluate "$strategy" 1024
  evaluate "$strategy" 8192
done
