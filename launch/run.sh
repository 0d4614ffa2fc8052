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
exec .venv/bin/python -m pinjax.train "$@"
