#!/usr/bin/env bash
# What do more ranks, longer samples and recomputation do to training steps? Ranks are threads of one
# process, each with its share of the cores.
#
#   ./benchmarks/train_scaling.sh [CONFIG] [--json]      default: launch/configs/quickstart.txtpb
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=launch/configs/quickstart.txtpb
if [[ $# -gt 0 && $1 != --* ]]; then
  config=$1
  shift
fi
longhaul=build/release/longhaul
[[ -x $longhaul ]] || {
  echo "build first: cmake --preset release && cmake --build --preset release" >&2
  exit 2
}

bench() { "$longhaul" bench train --config "$config" "$@"; }
cores=$(nproc)
[[ " $* " == *" --json "* ]] || echo "# ranks and lengths, activations kept"
bench --ranks "1,$cores" --lengths 2048,8192,16384 --steps 5 "$@"
[[ " $* " == *" --json "* ]] || echo "# recomputation"
bench --ranks "$cores" --lengths 8192,16384 --steps 5 --set memory.activations=RECOMPUTE "$@"
[[ " $* " == *" --json "* ]] || echo "# layouts without balance: contiguous leaves the first rank idle"
bench --ranks "$cores" --lengths 8192 --steps 5 --set parallel.layout=contiguous "$@"
