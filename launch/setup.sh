#!/usr/bin/env bash
# Installs what building and running Longhaul takes, on Debian 12 or a relative of it, as root or
# through sudo. Does nothing where everything is present.
#
#   launch/setup.sh          to build, to test, and for the quickstart's corpus
#   launch/setup.sh --lint   also what .ci/run checks the sources with
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config python3       # the build
  openmpi-bin libopenmpi-dev                            # ranks as processes
  libabsl-dev libprotobuf-dev protobuf-compiler         # strings; configuration and manifests
  libhwy-dev                                            # vector code
  libcli11-dev nlohmann-json3-dev libxxhash-dev         # command line; JSON; checksums
  libpcre2-dev libutf8proc-dev                          # tokenizers: patterns, normalisation
  zlib1g-dev libzstd-dev                                # compressed corpora
  libgtest-dev libgmock-dev                             # the tests
  python3.11-doc jargon-text                            # the quickstart's corpus
)
case "${1:-}" in
  "") ;;
  --lint) packages+=(clang-format clang-tidy clang-14 libclang-rt-14-dev shellcheck git) ;;
  *)
    echo "setup: unknown argument $1; usage: launch/setup.sh [--lint]" >&2
    exit 2
    ;;
esac

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  for tool in g++ cmake ninja protoc mpirun; do
    if ! command -v "$tool" >/dev/null; then
      echo "setup: this is no Debian, so I cannot install anything, and $tool is missing." >&2
      echo "setup: install what your system has for: ${packages[*]}" >&2
      exit 5
    fi
  done
  echo "setup: this is no Debian; the compilers are there, so going on with what is installed"
  exit 0
fi

installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)
missing=()
for package in "${packages[@]}"; do
  grep -qxF "$package installed" <<<"$installed" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "setup: missing packages: ${missing[*]}" >&2
    echo "setup: run this as root, or install sudo, or: apt-get install ${missing[*]}" >&2
    exit 5
  fi
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
# Without a network the packages may still be in apt's cache, so a failed update is not the end.
"${as_root[@]}" apt-get update -q || echo "setup: apt-get update failed; trying without" >&2
if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -q --no-install-recommends "${missing[@]}"; then
  echo "setup: apt-get could not install: ${missing[*]}" >&2
  exit 5
fi
