#!/usr/bin/env bash
# From a fresh clone to a trained model: installs packages, builds, prepares a corpus, trains with
# one MPI rank per core. What is there already is not done again.
#
#   ./launch/quickstart.sh [--set BLOCK.FIELD=VALUE ...]     options go to `longhaul train`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf '\n== %s\n' "$*"; }

say "Packages"
./launch/setup.sh

say "Build (build/release)"
[[ -f build/release/build.ninja ]] || cmake --preset release
cmake --build --preset release --target longhaul_program
longhaul=build/release/longhaul

say "Corpus (data/quickstart.bin, data/quickstart.idx)"
texts=data/quickstart.texts
mkdir -p "$texts"
# plain FILE NAME: a text, unpacked if need be, into the corpus's folder; whole or not at all.
plain() {
  [[ -f $1 && ! -f $texts/$2 ]] || return 0
  gzip --decompress --stdout --force "$1" >"$texts/.$2.part"
  mv "$texts/.$2.part" "$texts/$2"
}
manual=/usr/share/info/python3.11.info.gz
if [[ ! -f $manual && ! -f $texts/python-manual.txt ]]; then
  # Container images often leave out documentation, even of packages that are nothing else.
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  (cd "$unpacked" && apt-get download -q python3.11-doc && dpkg-deb -x ./*.deb .)
  manual=$unpacked$manual
fi
plain "$manual" python-manual.txt  # one document of 19.6 million tokens
plain /usr/share/doc/jargon-text/jargon.txt.gz jargon.txt
for license in /usr/share/common-licenses/*; do
  [[ -L $license ]] || plain "$license" "license-${license##*/}.txt"
done
"$longhaul" data prepare "$texts" --output data/quickstart
"$longhaul" data inspect data/quickstart --tokens 0

cores=$("$longhaul" doctor --json | sed -E 's/.*"usable":([0-9]+).*/\1/')
launcher=(mpirun --use-hwthread-cpus --bind-to none -n "$cores")
if ((EUID == 0)); then launcher+=(--allow-run-as-root); fi
# Containers often forbid the system call behind Open MPI's fast path, which then fails noisily.
if [[ -f /.dockerenv || -f /run/.containerenv ]]; then
  export OMPI_MCA_btl_vader_single_copy_mechanism=none
fi
command=("${launcher[@]}" "$longhaul" train --config launch/configs/quickstart.txtpb "$@")
say "Training: ${command[*]}"
"${command[@]}"

cat <<END

== Done
The run is in runs/quickstart: config.txtpb (all that was used), metrics.jsonl (a line a step) and
checkpoints. The same command again goes on from the last checkpoint; a finished run stays finished.

What to try next
  use it           $longhaul generate runs/quickstart --prompt "The list" --tokens 200
  by position      $longhaul eval runs/quickstart --svg loss.svg
  go on            ./launch/quickstart.sh --set train.steps=600
  start afresh     rm -r runs/quickstart
  ranks as threads $longhaul train --config launch/configs/quickstart.txtpb --ranks $cores
  more ranks       mpirun --oversubscribe -n 4 $longhaul train --config \\
                     launch/configs/quickstart.txtpb --set train.run_directory=runs/four
  another layout   ... --set parallel.layout=striped --set train.run_directory=runs/striped
  longer samples   ... --set data.sequence_length=32768 --set train.run_directory=runs/long
  your own text    $longhaul data prepare FILES --output data/mine
                   ... --set data.path=data/mine --set train.run_directory=runs/mine
  throughput       $longhaul bench train --config launch/configs/quickstart.txtpb --ranks 1,$cores
  this machine     $longhaul doctor
END
