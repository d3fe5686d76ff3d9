# Two ranks over a link of limited rate; to be sourced. Needs root, ip and tc.
# shellcheck shell=bash

# The tools it takes, or an error that names the script.
check_link_tools() {
  local tool
  for tool in ip tc unshare mpirun python3; do
    command -v "$tool" > /dev/null || { echo "$(basename "$0"): $tool is missing" >&2; exit 5; }
  done
}

# over_link RATE COMMAND ...: two ranks of the command that talk TCP over the loopback of a network
# namespace of their own, whose rate a token bucket (tc tbf) limits; both directions share the bucket.
# RATE in bytes a second, 0 for no limit.
over_link() {
  # shellcheck disable=SC2016  # the inner shell expands them
  unshare --net bash -c '
    set -euo pipefail
    rate=$1; shift
    ip link set lo up
    if [ "$rate" != 0 ]; then
      tc qdisc add dev lo root tbf rate "$((rate * 8))bit" burst 256kb latency 400ms
    fi
    exec mpirun -n 2 --allow-run-as-root --bind-to core --mca pml ob1 --mca btl tcp,self \
      --mca btl_tcp_if_include lo "$@"' over_link "$@"
}

# field LINE NAME: of a JSON object.
field() { python3 -c "import json, sys; print(json.loads(sys.argv[1])[sys.argv[2]])" "$@"; }
