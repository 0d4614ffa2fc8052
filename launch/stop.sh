#!/usr/bin/env bash
# Ends what pinjax runs on this machine: it saves its state, and after 90 seconds it is killed. A
# process that has lost the others of its job takes up to a minute to see that.
set -euo pipefail
running='-m pinjax[.]'

pkill -f -- "$running" || exit 0  # nothing runs
for _ in {1..90}; do
  pgrep -f -- "$running" >/dev/null || exit 0
  sleep 1
done
pkill -KILL -f -- "$running" || exit 0
for _ in {1..10}; do
  pgrep -f -- "$running" >/dev/null || exit 0
  sleep 1
done
echo "error: still runs, though it was killed: $(pgrep -f -- "$running" | xargs)" >&2
exit 1
