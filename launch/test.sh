#!/usr/bin/env bash
# Installs what pinjax and its tests need into .venv (the first time) and runs pytest with the
# arguments; without any, it runs the fast tests in two processes.
set -euo pipefail
source "$(dirname "$0")/env.sh"

install requirements-test.txt
[ $# -gt 0 ] || set -- --numprocesses=2 --dist=loadfile --no-loadscope-reorder
exec .venv/bin/python -m pytest "$@"
