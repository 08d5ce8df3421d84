#!/usr/bin/env bash
# Runs the tests, after setting up what they need. Arguments go to pytest: scripts/test.sh -k config
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup_env.sh
exec .venv/bin/python -m pytest -q "$@"
