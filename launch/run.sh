#!/usr/bin/env bash
# Installs pinjax into .venv (the first time) and trains and evaluates PinnerFormer, or whatever
# the arguments say: they go to `python -m pinjax.train`. After --stack they go to
# `python -m pinjax.stack`, which runs all systems.
#
#   launch/run.sh
#   launch/run.sh --config=configs/pinnerformer.py:test --workdir=/tmp/trial
#   launch/run.sh --stack --data=DIR
set -euo pipefail
source "$(dirname "$0")/env.sh"

install requirements.txt
command=train
if [ "${1:-}" = --stack ]; then
  command=stack
  shift
elif [[ " $*" != *" --config="* ]]; then
  set -- --config=configs/pinnerformer.py "$@"
fi
# Memory in pages of 2 MiB, where the system has them: on a CPU a step asks for all of its arrays
# anew, and in pages of 4 KiB that is a third of its time (benchmarks/huge_pages.py).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec .venv/bin/python -m "pinjax.$command" "$@"
