#!/usr/bin/env bash
# Installs pinjax into .venv (the first time) and trains and evaluates PinnerFormer, or whatever
# the arguments say: they go to `python -m pinjax.train`.
#
#   launch/run.sh
#   launch/run.sh --config=configs/pinnerformer.py:test --workdir=/tmp/trial
set -euo pipefail
source "$(dirname "$0")/env.sh"

install requirements.txt
case " $*" in
  *" --config="*) ;;
  *) set -- --config=configs/pinnerformer.py "$@" ;;
esac
# Memory in pages of 2 MiB, where the system has them: on a CPU a step asks for all of its arrays
# anew, and in pages of 4 KiB that is a third of its time (benchmarks/huge_pages.py).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec .venv/bin/python -m pinjax.train "$@"
