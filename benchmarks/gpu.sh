#!/usr/bin/env bash
# Does everything work on this machine's GPU, and how fast? One table at the end, and in a folder:
# table.md, results.json and each stage's output.
#
#   benchmarks/gpu.sh [--stages LIST] [--out FOLDER] [--seconds S]
#
# Stages: doctor, tests, nccl, shared (ranks that share a GPU), train (losses beside the CPU's),
# kernels, steps (training steps), peers (PyTorch), memcheck, racecheck; by default all, in this order.
# From a bundle (launch/bundle.sh, after `. env.sh`) or from a build of the preset `cuda`. A stage
# that this machine cannot run is reported as skipped, with the reason; one that hangs is ended, and
# all end after S seconds (default 530): what is left over can be run by --stages, with the same
# folder, whose table then has both.
# shellcheck disable=SC2317  # functions are called by stage()
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

all=doctor,tests,nccl,shared,train,kernels,steps,peers,memcheck,racecheck
stages=$all out=gpu-results seconds=530
while (($# > 0)); do
  case $1 in
    --stages) stages=${2:?--stages wants a list of: $all} && shift ;;
    --out) out=${2:?--out wants a folder} && shift ;;
    --seconds) seconds=${2:?--seconds wants a number} && shift ;;
    *) echo "gpu.sh: unknown option $1; usage: benchmarks/gpu.sh [--stages LIST] [--out FOLDER] [--seconds S]" >&2 && exit 2 ;;
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
# One machine, which may have no ssh, no other network than its own, and a container's limits.
mpirun='mpirun --oversubscribe --allow-run-as-root --bind-to none --mca plm isolated --mca pml ob1'
mpirun+=' --mca btl self,vader --mca btl_vader_single_copy_mechanism none'

for stage in ${stages//,/ }; do rm -f "$out/$stage.log"; done
"$longhaul" doctor --json >"$out/doctor.json" || true  # its findings are the first stage's
field() { python3 -c "import json, sys; print($1)" <"$out/doctor.json"; }
gpus=$(field 'len(json.load(sys.stdin)["gpus"])')
why=$(field '*(b["why_none"] for b in json.load(sys.stdin)["backends"] if b["device"] == "cuda")')
failed=0

report() {  # STAGE RESULT SECONDS
  python3 -c 'import json, sys; print(json.dumps({"stage": sys.argv[1], "result": sys.argv[2], "seconds": int(sys.argv[3])}))' \
    "$@" >>"$out/stages.jsonl"
}
# stage NAME LIMIT: runs run_NAME for at most LIMIT seconds, with its output in NAME.log; status 77 is
# "skipped".
stage() {
  local name=$1 limit=$2 status=0 begin=$SECONDS
  [[ ,$stages, == *,$name,* ]] || return 0
  if ((gpus == 0)) && [[ $name != doctor ]]; then
    report "$name" "skipped: $why" 0
    return 0
  fi
  if ((begin >= seconds)); then
    report "$name" "skipped: $seconds s are over; run it with --stages $name" 0
    return 0
  fi
  printf '\n== %s\n' "$name"
  if ((limit > seconds - begin)); then limit=$((seconds - begin)); fi
  # At once, with all its processes: trainers end after a step when they are asked to.
  timeout --signal=KILL "$limit" bash -euo pipefail -c "run_$name" >"$out/$name.log" 2>&1 || status=$?
  tail -n 25 "$out/$name.log" | cut -c 1-400
  case $status in
    0) report "$name" passed $((SECONDS - begin)) ;;
    77) report "$name" "skipped: $(tail -n 1 "$out/$name.log")" $((SECONDS - begin)) ;;
    137) failed=1 && report "$name" "FAILED: not done after $limit s, see $name.log" $((SECONDS - begin)) ;;
    *) failed=1 && report "$name" "FAILED with status $status, see $name.log" $((SECONDS - begin)) ;;
  esac
}

# Stages, each in a shell of its own that can be ended.
export longhaul tests configs here gpus mpirun
run_doctor() { "$longhaul" doctor; }
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
sanitize() {  # TOOL
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed" && return 77; }
  # Asking whether a stream is done is no error.
  local tool=(compute-sanitizer --tool "$1" --error-exitcode 1)
  if [[ $1 == memcheck ]]; then tool+=(--report-api-errors no); fi
  "${tool[@]}" "$tests/kernels_attention_test" \
    --gtest_brief=1 --gtest_filter='Attention.EveryMask:Attention.GroupedHeads' &&
    "${tool[@]}" "$tests/kernels_layers_test" \
      --gtest_brief=1 --gtest_filter='GatedUnit*:Activation*:DecayGate*:Lrpe*:RmsNorm*:Embedding*'
}
run_memcheck() { sanitize memcheck; }
run_racecheck() { sanitize racecheck; }
# With a rank a GPU; one more is refused.
run_nccl() {
  local status=0
  $mpirun -n "$gpus" "$tests/dist_nccl_suite"
  $mpirun -n $((gpus + 1)) "$tests/dist_nccl_suite" || status=$?
  echo "$((gpus + 1)) ranks: status $status, 77 is wanted"
  ((status == 77))
}
run_shared() {
  # shellcheck disable=SC2086  # words
  python3 "$here/tests/launch/device_test.py" "$longhaul" $mpirun
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
  local short=(--device cuda --dtype bf16 --json --seconds 0.2)
  "$longhaul" bench attention "${short[@]}" --n 2048,8192,16384 --heads 16
  "$longhaul" bench linear "${short[@]}" --n 8192 --heads 16
  "$longhaul" bench gemm "${short[@]}" --tokens 8192
  # Operands far larger than the caches.
  "$longhaul" bench pointwise "${short[@]}" --n 32768 --loss-n 16384 --loss-width 2048
}
# A small model, where submitting kernels takes time, with and without a CUDA graph; and one of the
# size of Llama 3.2 1B.
run_steps() {
  local graph step=(bench train --ranks 1 --json --steps 5 --set device=CUDA)
  for graph in false true; do
    "$longhaul" "${step[@]}" --config "$configs/quickstart.txtpb" --set train.dtype=BF16 \
      --set train.cuda_graph="$graph" --lengths 2048,16384
  done
  "$longhaul" "${step[@]}" --config "$configs/long-1b.txtpb" --set train.batch_tokens=32768 --lengths 32768
}
run_peers() {
  local status=0
  python3 "$here/benchmarks/peers/attention_gpu.py" --program "$longhaul" --json || status=$?
  ((status == 5)) && return 77  # no PyTorch
  return "$status"
}

export -f sanitize
for stage in ${all//,/ }; do export -f "run_$stage"; done
stage doctor 30
stage tests 240
stage nccl 90
stage shared 240
stage train 120
stage kernels 150
stage steps 120
stage peers 200
stage memcheck 150
stage racecheck 150

printf '\n== summary\n'
python3 "$here/benchmarks/gpu_table.py" "$out"
exit "$failed"
