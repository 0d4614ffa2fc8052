#!/usr/bin/env bash
# Installs pinjax and what its tests need into .venv (the first time) and runs them; arguments go
# to pytest.
set -euo pipefail
source "$(dirname "$0")/env.sh"

install requirements-test.txt
exec .venv/bin/python -m pytest "$@"
