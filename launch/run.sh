#!/usr/bin/env bash
# Installs pinjax into .venv (the first time) and trains and evaluates PinnerFormer, or whatever
# the arguments say: they go to `python -m pinjax.train`. After --stack, --evaluate or --embed they go
# to the command of that name; `python -m pinjax.stack` runs all systems.
#
#   launch/run.sh
#   launch/run.sh --config=configs/pinnerformer.py:test --workdir=/tmp/trial
#   launch/run.sh --stack --data=DIR
#   launch/run.sh --embed --workdir=/tmp/trial --out=/tmp/trial/embeddings
set -euo pipefail
source "$(dirname "$0")/env.sh"

install requirements.txt
command=train
case ${1:-} in
  --stack | --evaluate | --embed)
    command=${1#--}
    shift
    ;;
  *) [[ " $*" == *" --config="* ]] || set -- --config=configs/pinnerformer.py "$@" ;;
esac
# Memory in pages of 2 MiB, where the system has them: on a CPU a step asks for all of its arrays
# anew, and in pages of 4 KiB that is a third of its time (benchmarks/huge_pages.py).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}
exec .venv/bin/python -m "pinjax.$command" "$@"
