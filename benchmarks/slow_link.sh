#!/bin/bash
# How much of a slow link's time does attention over two ranks hide?
#
# Two ranks over a link (limited_link.sh) whose rate is such that the keys of a step take 0.8 of the time
# that a step computes. With T the time of a pass (medians of the program's own timing):
#
#   hidden = 1 - (T with the limit - T without) / link time,    link time = bytes / rate
#
# T without the limit is over the same TCP, so what TCP costs the cores is not counted as link time.
# Needs root, ip and tc. usage: benchmarks/slow_link.sh [LONGHAUL] [option of bench sequence ...]
set -euo pipefail
longhaul=$(realpath "${1:-build/release/longhaul}")
shift || true
options=("$@")
# Defaults, where an option does not say otherwise.
for default in "--n 8192" "--heads 8" "--op forward" "--strategy ring" "--seconds 1"; do
  if [[ " ${options[*]} " != *" ${default% *} "* ]]; then
    options+=("${default% *}" "${default#* }")
  fi
done
# shellcheck source=benchmarks/limited_link.sh
source "$(dirname "$0")/limited_link.sh"
check_link_tools

# run RATE: JSON lines of the benchmark; RATE in bytes a second, 0 for no limit.
run() {
  over_link "$1" "$longhaul" bench sequence --json --moved --mask causal --layout zigzag \
    "${options[@]}"
}

free=$(run 0 | tail -n 1)
rate=$(python3 -c "
steps = 2  # as many as ranks
print(int($(field "$free" moved_bytes) / (0.8 * $(field "$free" seconds) / steps)))")
limited=$(run "$rate" | tail -n 1)
python3 - "$free" "$limited" "$rate" << 'PYTHON'
import json
import sys

free, limited, rate = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
link = limited["moved_bytes"] / rate
exposed = limited["seconds"] - free["seconds"]
print(f"{limited['moved_bytes']} bytes at {rate / 1e6:.1f} MB/s: link time {1e3 * link:.1f} ms; "
      f"pass {1e3 * free['seconds']:.1f} ms without the limit, {1e3 * limited['seconds']:.1f} ms "
      f"with it: {100 * (1 - exposed / link):.1f} % of the link time hidden")
PYTHON
