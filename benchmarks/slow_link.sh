#!/bin/bash
# How much of a slow link's time does attention over two ranks hide?
#
# Two ranks talk TCP over the loopback of a network namespace of their own, whose rate a token bucket
# (tc tbf) limits so that the keys of a step take 0.8 of the time that a step computes. Messages of
# both directions share the bucket. With T the time of a pass (medians of the program's own timing):
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
for tool in ip tc unshare mpirun python3; do
  command -v "$tool" > /dev/null || { echo "slow_link.sh: $tool is missing" >&2; exit 5; }
done

# run RATE [OPTION ...]: JSON lines of the benchmark; RATE in bytes a second, 0 for no limit.
run() {
  local rate=$1
  shift
  # shellcheck disable=SC2016  # the inner shell expands them
  unshare --net bash -c '
    set -euo pipefail
    rate=$1; shift
    ip link set lo up
    if [ "$rate" != 0 ]; then
      tc qdisc add dev lo root tbf rate "$((rate * 8))bit" burst 256kb latency 400ms
    fi
    exec mpirun -n 2 --allow-run-as-root --bind-to core --mca pml ob1 --mca btl tcp,self \
      --mca btl_tcp_if_include lo "$@"' run "$rate" \
    "$longhaul" bench sequence --json --moved --mask causal --layout zigzag "$@"
}

field() { python3 -c "import json, sys; print(json.loads(sys.argv[1])['$2'])" "$1"; }

free=$(run 0 "${options[@]}" | tail -n 1)
rate=$(python3 -c "
steps = 2  # as many as ranks
print(int($(field "$free" moved_bytes) / (0.8 * $(field "$free" seconds) / steps)))")
limited=$(run "$rate" "${options[@]}" | tail -n 1)
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
