#!/usr/bin/env bash
# Fuzzes the readers of files that others made, all of them at once, for LONGHAUL_FUZZ_SECONDS
# (default: 60). What breaks one stays in build/fuzz/crashes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[[ -f build/fuzz/build.ninja ]] || cmake --preset fuzz
cmake --build --preset fuzz --target fuzz_targets
rm -rf build/fuzz/seeds
python3 tests/fuzz/corpus.py build/fuzz/seeds
mkdir -p build/fuzz/crashes

pids=() names=()
for source in tests/fuzz/*_fuzz.cc; do
  name=$(basename "$source" .cc)
  mkdir -p "build/fuzz/corpus/$name"
  LONGHAUL_FUZZ_SEEDS=1 "build/fuzz/$name" "build/fuzz/seeds/$name"/* 2>"build/fuzz/$name.log" ||
    { cat "build/fuzz/$name.log"; exit 1; }
  ASAN_OPTIONS=allocator_may_return_null=1 "build/fuzz/$name" \
    "build/fuzz/corpus/$name" "build/fuzz/seeds/$name" -max_total_time="${LONGHAUL_FUZZ_SECONDS:-60}" \
    -timeout=10 -rss_limit_mb=2048 -max_len=4096 \
    -artifact_prefix="build/fuzz/crashes/$name-" -print_final_stats=1 >"build/fuzz/$name.log" 2>&1 &
  pids+=($!) names+=("$name")
done
failed=0
for i in "${!pids[@]}"; do
  if wait "${pids[$i]}"; then
    echo "${names[$i]}: $(grep -E 'number_of_executed_units' "build/fuzz/${names[$i]}.log" | tr -s ' ')"
  else
    failed=1
    echo "${names[$i]} FAILED:"
    tail -n 40 "build/fuzz/${names[$i]}.log"
  fi
done
exit "$failed"
