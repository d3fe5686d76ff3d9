#!/usr/bin/env bash
# Sets up what is missing, builds, and runs all tests.
#
#   ./tests/run.sh           the sanitizers' suites, then everything in the release build
#   ./tests/run.sh --quick   the release build only
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=false
case "${1:-}" in
  "") ;;
  --quick) quick=true ;;
  *)
    echo "usage: tests/run.sh [--quick]" >&2
    exit 2
    ;;
esac

./launch/setup.sh

# Builds share what they have in common.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=true

build() {  # PRESET
  [[ -f build/$1/build.ninja ]] || cmake --preset "$1"
  cmake --build --preset "$1"
}
run() {  # PRESET [CTEST OPTIONS]
  ctest --test-dir "build/$1" --output-on-failure --parallel "$(nproc)" "${@:2}"
}

build release
if ! $quick; then
  # What is left to the release build: tests under mpirun, since Open MPI's own leaks and races would
  # drown ours, and the transport-independent code is the same in ranks as threads; benchmarks, which
  # copy gigabytes to measure a limit, and whose kernels have tests of their own; what a model learns
  # in hundreds of steps; what is about digits; and all instruction sets but the best.
  export LONGHAUL_TEST_SLOW_BUILD=1
  left_out='_mpi_|include_edges|launch_bench'
  cases='*.EveryInstructionSet:CopyTask.*Learned*:PeakTest.CopyBandwidth*:*.GradientsEqualFiniteDifferences:*.LowPrecisionLosesNothing*'
  export GTEST_FILTER=-$cases
  build asan
  run asan --exclude-regex "$left_out"
  # CUDA's kernels and what moves their tensors, run by the CPU; the rest is as in the release build.
  build emulated
  run emulated --tests-regex 'kernels_(attention|attention_work|core|delta_rule|gated_linear_attention|gemm|layers|linear_attention|state_maps)_test|dist_.*(device|nccl)|launch_device'
  build tsan
  # Plans are pure functions, made and proved by one thread; programs of their own have no threads
  # that other tests lack; and who writes what does not depend on the size of a head.
  shapes='*.EveryHeadDimension:*.EveryLength:*.LargeBlocks'
  GTEST_FILTER+=:$shapes TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1" \
    run tsan --exclude-regex "$left_out|launch_cli|launch_generate|launch_huggingface|parallel_plan_"
  unset LONGHAUL_TEST_SLOW_BUILD GTEST_FILTER
fi
run release
