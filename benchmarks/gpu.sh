#!/usr/bin/env bash
# Does everything work on this machine's GPU, and how fast? One table at the end, JSON in a folder.
#
#   benchmarks/gpu.sh [--stages doctor,tests,memcheck,racecheck,nccl,shared,train,kernels,peers] [--out FOLDER]
#
# From a bundle (launch/bundle.sh, after `. env.sh`) or from a build of the preset `cuda`. A stage
# that this machine cannot run is reported as skipped, with the reason.
# shellcheck disable=SC2317  # functions are called by stage()
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

all=doctor,tests,memcheck,racecheck,nccl,shared,train,kernels,peers
stages=$all out=gpu-results
while (($# > 0)); do
  case $1 in
    --stages) stages=${2:?--stages wants a list of: $all} && shift ;;
    --out) out=${2:?--out wants a folder} && shift ;;
    *) echo "gpu.sh: unknown option $1; usage: benchmarks/gpu.sh [--stages LIST] [--out FOLDER]" >&2 && exit 2 ;;
  esac
  shift
done
for stage in ${stages//,/ }; do
  [[ ,$all, == *,$stage,* ]] || { echo "gpu.sh: stage $stage: one of $all" >&2 && exit 2; }
done

if [[ -n ${LONGHAUL_ROOT:-} ]]; then
  longhaul=$LONGHAUL_ROOT/bin/longhaul tests=$LONGHAUL_ROOT/tests configs=$LONGHAUL_ROOT/configs
else
  longhaul=$here/build/cuda/longhaul tests=$here/build/cuda configs=$here/launch/configs
fi
[[ -x $longhaul ]] || { echo "gpu.sh: $longhaul is missing: cmake --preset cuda && cmake --build --preset cuda" >&2 && exit 2; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
mpirun=(mpirun --oversubscribe --allow-run-as-root --bind-to none)

summary=() failed=0
gpus=$("$longhaul" doctor --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["gpus"]))')
why=$("$longhaul" doctor --json | python3 -c 'import json, sys
print(*(b["why_none"] for b in json.load(sys.stdin)["backends"] if b["device"] == "cuda"))')

# stage NAME COMMAND...: runs it, with its output in NAME.log; 77 is "skipped".
stage() {
  local name=$1 status=0 begin=$SECONDS
  shift
  [[ ,$stages, == *,$name,* ]] || return 0
  if ((gpus == 0)) && [[ $name != doctor ]]; then
    summary+=("$name: skipped: $why")
    return 0
  fi
  printf '\n== %s\n' "$name"
  "$@" >"$out/$name.log" 2>&1 || status=$?
  tail -n 25 "$out/$name.log"
  case $status in
    0) summary+=("$name: passed in $((SECONDS - begin)) s") ;;
    77) summary+=("$name: skipped: $(tail -n 1 "$out/$name.log")") ;;
    *) summary+=("$name: FAILED with status $status, see $out/$name.log") && failed=1 ;;
  esac
}

run_tests() {
  local program status=0
  for program in kernels_core_test kernels_layers_test kernels_gemm_test kernels_attention_test \
    kernels_linear_attention_test kernels_gated_linear_attention_test kernels_delta_rule_test \
    kernels_state_maps_test dist_device_test; do
    [[ -x $tests/$program ]] || { echo "$program is missing" && status=1 && continue; }
    "$tests/$program" --gtest_brief=1 || status=1
  done
  return "$status"
}
sanitize() {
  local tool=$1
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed" && return 77; }
  compute-sanitizer --tool "$tool" --error-exitcode 1 "$tests/kernels_attention_test" \
    --gtest_brief=1 --gtest_filter='Attention.EveryMask:Attention.GroupedHeads' &&
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$tests/kernels_layers_test" \
      --gtest_brief=1 --gtest_filter='GatedUnit*:Activation*:DecayGate*:Lrpe*:RmsNorm*:Embedding*'
}
run_nccl() { "${mpirun[@]}" -n "$gpus" "$tests/dist_nccl_suite"; }
run_shared() {
  python3 "$here/tests/launch/device_test.py" "$longhaul" "${mpirun[@]}"
}
# The quickstart's model on random copies; the losses of the CPU beside those of the GPU.
run_train() {
  local folder
  folder=$(mktemp -d)
  (cd "$folder" && "$longhaul" data synthesize --output copy --documents 200 --tokens 4096 --vocabulary 256 >/dev/null)
  for device in CPU CUDA; do
    (cd "$folder" && "$longhaul" train --config "$configs/quickstart.txtpb" --set data.path=copy \
      --set device="$device" --set train.steps=20 --set train.run_directory="$device" --ranks 1)
  done
  python3 - "$folder" <<'PY'
import json, pathlib, sys
losses = [[json.loads(line)["loss"] for line in (pathlib.Path(sys.argv[1]) / device / "metrics.jsonl").open()
           if '"loss"' in line and '"step"' in line] for device in ("CPU", "CUDA")]
worst = max(abs(a - b) / a for a, b in zip(*losses))
print(f"{len(losses[0])} losses; the largest difference of GPU and CPU is {worst:.2e} relative")
sys.exit(worst > 1e-2)
PY
  rm -rf "$folder"
}
run_kernels() {
  "$longhaul" bench attention --device cuda --dtype bf16 --n 2048,8192,16384 --heads 16 --json
  "$longhaul" bench gemm --device cuda --tokens 8192 --json
  "$longhaul" bench pointwise --device cuda --json
}
run_peers() { python3 "$here/benchmarks/peers/attention_gpu.py" --program "$longhaul" --json; }

stage doctor "$longhaul" doctor
stage tests run_tests
stage memcheck sanitize memcheck
stage racecheck sanitize racecheck
stage nccl run_nccl
stage shared run_shared
stage train run_train
stage kernels run_kernels
stage peers run_peers

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
exit "$failed"
