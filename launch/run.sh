#!/usr/bin/env bash
# Installs what pinjax needs into .venv (the first time) and trains and evaluates PinnerFormer, or
# whatever the arguments say: they go to `python -m pinjax.train`. After --stack, --evaluate or
# --embed they go to the command of that name; `python -m pinjax.stack` runs all systems.
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
exec .venv/bin/python -m "pinjax.$command" "$@"
