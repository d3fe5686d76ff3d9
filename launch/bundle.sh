#!/usr/bin/env bash
# Packs a build for machines without its packages: the program, tests of kernels and transports,
# benchmarks, Open MPI with its plug-ins, and every shared library they need except the C library's and the GPU driver's.
#
#   launch/bundle.sh [--preset cuda] [--cuda-libraries] OUT.tar.xz
#
# On the other machine: tar -xJf OUT.tar.xz && . longhaul/env.sh && longhaul doctor
# --cuda-libraries also packs cuBLAS and NCCL (hundreds of MiB); without it they must be found there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release cuda_libraries=false out=
while (($# > 0)); do
  case $1 in
    --preset) preset=${2:?--preset wants a name} && shift ;;
    --cuda-libraries) cuda_libraries=true ;;
    -*) echo "bundle: unknown option $1; usage: launch/bundle.sh [--preset P] [--cuda-libraries] OUT.tar.xz" >&2 && exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
if [[ -z $out ]]; then
  echo "bundle: name the file to write; usage: launch/bundle.sh [--preset P] [--cuda-libraries] OUT.tar.xz" >&2
  exit 2
fi
build=build/$preset
if [[ ! -x $build/longhaul ]]; then
  echo "bundle: $build/longhaul is missing; build it: cmake --preset $preset && cmake --build --preset $preset" >&2
  exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/longhaul
mkdir -p "$root"/{bin,lib,tests,share}

# Open MPI finds its parts below OPAL_PREFIX, laid out as they were installed.
mpi_prefix=$(ompi_info --path prefix --parsable | cut -d: -f3)
mpi_plugins=$(ompi_info --path pkglibdir --parsable | cut -d: -f3)
mpi_data=$(ompi_info --path pkgdatadir --parsable | cut -d: -f3)
below() { printf '%s' "$root/${1#"$mpi_prefix"/}"; }
mkdir -p "$(below "$mpi_plugins")" "$(below "$mpi_data")" "$root/etc/openmpi"
cp -L "$mpi_plugins"/*.so "$(below "$mpi_plugins")"
cp -L "$mpi_data"/*.txt "$(below "$mpi_data")"
cp -L "$(command -v orted)" "$root/bin/orted"
cp -L "$(command -v orterun || command -v mpirun)" "$root/bin/mpirun"

cp "$build/longhaul" "$root/bin"
# What may go wrong on another machine: kernels and transports.
find "$build" -maxdepth 1 -type f -executable \( -name 'kernels_*_test' -o -name 'dist_*_test' -o -name 'dist_*_suite' \) \
  -exec cp {} "$root/tests" \;
mkdir -p "$root/tests/launch"
cp tests/launch/device_test.py "$root/tests/launch"
cp -r launch/configs "$root/configs"
cp -r benchmarks "$root/benchmarks"
cp launch/slurm -r "$root/slurm"

# What the target's own C library and driver provide.
system='^(linux-vdso|ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util|nsl|crypt|anl)\.so|libcuda\.so|libnvidia-.*)'
of_cuda='^lib(cublas|cublasLt|nccl|cudart|nvrtc)'
needed() { ldd "$@" 2>/dev/null | awk '/=> \// { print $3 }' | sort -u; }
mapfile -t programs < <(find "$root/bin" "$root/tests" "$(below "$mpi_plugins")" -type f)
while read -r library; do
  name=$(basename "$library")
  [[ $name =~ $system ]] && continue
  if [[ $name =~ $of_cuda ]] && ! $cuda_libraries; then continue; fi
  cp -L "$library" "$root/lib/$name"
done < <(needed "${programs[@]}")

find "$root" -type f \( -name '*.so*' -o -path '*/bin/*' -o -path '*/tests/*' \) \
  -exec strip --strip-unneeded {} \; 2>/dev/null

cat >"$root/env.sh" <<'ENV'
# Source this: puts Longhaul and its Open MPI first.
LONGHAUL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
export LONGHAUL_ROOT
export OPAL_PREFIX=$LONGHAUL_ROOT
export PATH=$LONGHAUL_ROOT/bin:$PATH
export LD_LIBRARY_PATH=$LONGHAUL_ROOT/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# cuBLAS and NCCL, where they are not in the bundle: the linker's, the toolkit's, or those that came
# with PyTorch.
_longhaul_lacks() { ldd "$LONGHAUL_ROOT/bin/longhaul" | awk '/not found/ { print $1 }'; }
if [ -n "$(_longhaul_lacks)" ]; then
  _longhaul_wheels=$(python3 -c 'import nvidia; print(nvidia.__path__[0])' 2>/dev/null || true)
  for _longhaul_folder in "${CUDA_HOME:-/usr/local/cuda}/lib64" ${_longhaul_wheels:+"$_longhaul_wheels"/*/lib}; do
    for _longhaul_library in $(_longhaul_lacks); do
      [ -e "$_longhaul_folder/$_longhaul_library" ] || continue
      LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$_longhaul_folder
      break
    done
  done
  for _longhaul_library in $(_longhaul_lacks); do
    echo "longhaul: $_longhaul_library is not on this machine; add its folder to LD_LIBRARY_PATH" >&2
  done
fi
unset -f _longhaul_lacks
ENV

# The newest symbol version of the C library that anything in the bundle asks for.
floor=$(find "$root" -type f \( -name '*.so*' -o -path '*/bin/*' -o -path '*/tests/*' \) ! -name '*.py' \
  -exec objdump -T {} + 2>/dev/null | grep -o 'GLIBC_2\.[0-9.]*' | sort -uV | tail -1)
{
  echo "Longhaul $(git describe --always --dirty 2>/dev/null || echo unknown), preset $preset"
  echo "needs glibc ${floor#GLIBC_} or newer, x86-64"
  $cuda_libraries || echo "cuBLAS and NCCL, if used, are not included"
  echo "use: . env.sh && longhaul doctor"
} >"$root/README"

# Every program has the same kernels: a dictionary that spans several of them stores these once. CUDA's
# libraries hardly shrink, whatever is tried.
pack=(xz -T1 "--lzma2=preset=1,dict=192MiB")
if $cuda_libraries; then pack=(xz -T0 -0); fi
tar -C "$work" -cf - longhaul | "${pack[@]}" >"$out.partial"
mv "$out.partial" "$out"
cat "$root/README"
echo "$out: $(($(stat -c %s "$out") / 1024)) KiB"
