#!/bin/bash
# expect_end.sh STATUS PATTERN COMMAND...: COMMAND must end with this exit status ("any": not 0) and
# print something that matches PATTERN. That it ends at all is ctest's timeout's affair.
set -u
status=$1 pattern=$2
shift 2
output=$("$@" 2>&1)
got=$?
echo "$output"
if [[ $status == any && $got -eq 0 ]] || [[ $status != any && $got -ne $status ]]; then
  echo "exit status $got, expected $status"
  exit 1
fi
if ! grep -qE -- "$pattern" <<<"$output"; then
  echo "no output matches '$pattern'"
  exit 1
fi
