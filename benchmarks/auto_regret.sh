#!/usr/bin/env bash
# How much slower than the fastest strategy is the one that "auto" takes? Lengths x masks x heads,
# forward and backward, keys read in place and moved; the median of the last line should be <= 3 %.
#
#   benchmarks/auto_regret.sh [RANKS] [OPTIONS of longhaul bench auto]
set -euo pipefail
longhaul=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/release/longhaul
[[ -x $longhaul ]] || { echo "auto_regret.sh: $longhaul is missing: ./tests/run.sh --quick builds it" >&2 && exit 2; }
ranks=${1:-$(nproc)}
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
for kv_heads in 1 8; do
  for keys in "" --moved; do
    mpirun --oversubscribe --allow-run-as-root --bind-to none -n "$ranks" \
      "$longhaul" bench auto --kv-heads "$kv_heads" ${keys:+"$keys"} "${@:2}" --json | tee -a "$lines" |
      python3 -c '
import json, sys
for line in sys.stdin:
    f = json.loads(line)
    if "regret" not in f: continue
    c = f["case"]
    print("%-8s %-5s %-6s %6d  heads %d/%d  %-8s %-12s %9.3f ms  fastest %-12s %9.3f ms  regret %5.1f%%" % (
        c["op"], c["dtype"], c["mask"], c["n"], c["heads"], c["kv_heads"],
        "in place" if c["in_place"] else "moved", f["chosen"], f["value"], f["fastest"], f["limit"],
        100 * f["regret"]), flush=True)'
  done
done
python3 - "$lines" <<'PY'
import json, statistics, sys
regrets = [f["regret"] for f in map(json.loads, open(sys.argv[1])) if "regret" in f]
print(f"regret over {len(regrets)} cases: median {100 * statistics.median(regrets):.1f} % "
      f"(target 3 %), worst {100 * max(regrets):.1f} %")
PY
