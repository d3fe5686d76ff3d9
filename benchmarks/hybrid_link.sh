#!/bin/bash
# What is a hybrid worth on a slow link?
#
# Training steps of two models, alike but for their layers: softmax attention everywhere, by a ring,
# and three of four layers linear (LLLN). Two ranks over a link (limited_link.sh) whose rate is such that
# what the ring moves in a step of the softmax model takes 0.8 of the time that this step takes without a
# limit:
#
#   T_comm(ring) = 0.8 T_comp
#
# Gradients and parameters come on top, in both models. Both then run at that rate, and without one, in turn; medians of the rounds. Needs root, ip
# and tc. usage: [ROUNDS=3] benchmarks/hybrid_link.sh [LONGHAUL] [option of bench train ...]
set -euo pipefail
longhaul=$(realpath "${1:-build/release/longhaul}")
shift || true
options=("$@")
for default in "--config launch/configs/quickstart.txtpb" "--lengths 8192" "--steps 3"; do
  if [[ " ${options[*]} " != *" ${default% *} "* ]]; then
    options+=("${default% *}" "${default#* }")
  fi
done
# shellcheck source=benchmarks/limited_link.sh
source "$(dirname "$0")/limited_link.sh"
check_link_tools

# run RATE PATTERN: a JSON line of the benchmark; RATE in bytes a second, 0 for no limit.
run() {
  over_link "$1" "$longhaul" bench train --json --set parallel.in_place=false \
    --set "model.pattern=$2" "${options[@]}" | tail -n 1
}

rounds=${ROUNDS:-3}
free=$(run 0 N)
rate=$(python3 -c "
ranks = 2  # their messages share the bucket
print(int(ranks * $(field "$free" attention_sent_bytes) / (0.8 * $(field "$free" seconds))))")
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
for ((round = 0; round < rounds; ++round)); do
  for limit in 0 "$rate"; do
    for pattern in N LLLN; do
      echo "$limit $pattern $(run "$limit" "$pattern")" >> "$lines"
    done
  done
done
python3 - "$lines" "$rate" << 'PYTHON'
import collections
import json
import statistics
import sys

seconds, moved = collections.defaultdict(list), {}
with open(sys.argv[1], encoding="utf-8") as file:
    for line in file:
        limit, pattern, result = line.split(" ", 2)
        result = json.loads(result)
        seconds[limit != "0", pattern].append(result["seconds"])
        moved[pattern] = result["attention_sent_bytes"]
rate = int(sys.argv[2])
for pattern in ["N", "LLLN"]:
    free, limited = (statistics.median(seconds[limit, pattern]) for limit in (False, True))
    print(f"{pattern:4}  attention sends {moved[pattern] / 2**20:8.2f} MiB a step and rank, "
          f"{2 * moved[pattern] / rate:6.3f} s of the link; step {free:.3f} s without the limit, "
          f"{limited:.3f} s at {rate / 1e6:.1f} MB/s")
for name, limit in [("without the limit", False), ("at the limit", True)]:
    ratio = (statistics.median(seconds[limit, "N"]) / statistics.median(seconds[limit, "LLLN"]))
    print(f"{name}: the hybrid is {ratio:.2f} times as fast")
PYTHON
