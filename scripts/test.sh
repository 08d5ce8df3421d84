#!/usr/bin/env bash
# Runs the tests, after setting up what they need, with a process for each core. Arguments go to pytest:
# scripts/test.sh -k config
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # the processes share the cores
exec .venv/bin/python -m pytest -q -n auto --dist loadfile "$@"
