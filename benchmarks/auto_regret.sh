#!/usr/bin/env bash
# How much slower than the fastest strategy is the one that "auto" takes? Lengths x masks x heads,
# forward and backward, keys read in place and moved; the median of the last line should be <= 3 %.
#
#   benchmarks/auto_regret.sh [--held-out] [RANKS] [OPTIONS of longhaul bench auto]
#
# With --held-out: lengths, masks, documents and heads that the cost model was not made with. Ranks
# beyond the cores take turns on them, so their times say nothing about strategies.
set -euo pipefail
longhaul=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/release/longhaul
[[ -x $longhaul ]] || { echo "auto_regret.sh: $longhaul is missing: ./tests/run.sh --quick builds it" >&2 && exit 2; }
cases=("--kv-heads 1" "--kv-heads 1 --moved" "--kv-heads 8" "--kv-heads 8 --moved")
if [[ ${1:-} == --held-out ]]; then
  shift
  few="--heads 4 --kv-heads 1 --d 128" some="--heads 6 --kv-heads 3 --d 96" many="--heads 12 --kv-heads 12 --d 32"
  cases=(
    "$some --n 1500,3000 --mask causal,window,packed --window 300 --mean-document 200"
    "$many --n 1500,3000 --mask causal,full,prefix,packed-window --prefix 700 --window 300 --mean-document 900 --moved"
    "$few --n 2000,6000 --mask window,packed,packed-window --window 1500 --mean-document 3000"
    "$some --n 6000 --mask causal,full,packed --mean-document 3000 --rounds 4 --moved"
    "$many --n 6000 --mask full,window,packed --window 100 --mix long --rounds 4"
    "$few --n 12000 --mask packed,packed-window,window --window 700 --mean-document 1200 --rounds 4 --moved"
    "$some --n 24000 --mask window,packed-window --window 1000 --mix long --rounds 4"
    "$few --n 32000 --mask packed --mean-document 1500 --rounds 4"
    "$few --n 12000 --mask causal --rounds 3"
  )
  set -- "${1:-$(nproc)}" --seconds 0.05 "${@:2}"
fi
ranks=${1:-$(nproc)}
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
for options in "${cases[@]}"; do
  # shellcheck disable=SC2086  # options are words
  mpirun --oversubscribe --allow-run-as-root --bind-to none -n "$ranks" \
    "$longhaul" bench auto $options "${@:2}" --json | tee -a "$lines" |
    python3 -c '
import json, sys
for line in sys.stdin:
    f = json.loads(line)
    if "regret" not in f: continue
    c = f["case"]
    print("%-8s %-5s %-13s %6d  heads %d/%d of %d  %-8s %-12s %9.3f ms  fastest %-12s %9.3f ms  regret %5.1f%%" % (
        c["op"], c["dtype"], c["mask"], c["n"], c["heads"], c["kv_heads"], c["d"],
        "in place" if c["in_place"] else "moved", f["chosen"], f["value"], f["fastest"], f["limit"],
        100 * f["regret"]), flush=True)'
done
python3 - "$lines" <<'PY'
import json, statistics, sys
regrets = [f["regret"] for f in map(json.loads, open(sys.argv[1])) if "regret" in f]
print(f"regret over {len(regrets)} cases: median {100 * statistics.median(regrets):.1f} % "
      f"(target 3 %), worst {100 * max(regrets):.1f} %")
PY
