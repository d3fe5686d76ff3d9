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

build() {  # PRESET
  [[ -f build/$1/build.ninja ]] || cmake --preset "$1"
  cmake --build --preset "$1"
}
run() {  # PRESET [CTEST OPTIONS]
  ctest --test-dir "build/$1" --output-on-failure --parallel "$(nproc)" "${@:2}"
}

build release
if ! $quick; then
  # Tests under mpirun are left to the release build: Open MPI's own leaks and races would drown
  # ours, and the transport-independent code is the same in ranks as threads. AVX2 is left to it,
  # too (kernels/cpu/CMakeLists.txt): it is the code of AVX-512 on narrower vectors, and dear to compile.
  build asan
  run asan --exclude-regex '_mpi_|include_edges'
  build tsan
  # Benchmarks copy gigabytes to measure a limit; their kernels have tests of their own.
  TSAN_OPTIONS="halt_on_error=1 second_deadlock_stack=1" \
    run tsan --exclude-regex '_mpi_|include_edges|launch_cli|launch_bench'
fi
run release
