#!/bin/sh
# Shut the machine down once, for so many minutes, `pgrep` has found no such process.
#   watch.sh MINUTES PGREP-ARGUMENT...
minutes=$1
shift
missed=0
while [ "$missed" -lt "$minutes" ]; do
  sleep "${SECONDS_OF_A_MINUTE:-60}"
  if pgrep "$@" >/dev/null; then missed=0; else missed=$((missed + 1)); fi
done
shutdown -h now
