#!/usr/bin/env bash
# Everything that must pass, in an environment that it makes itself. Arguments go to pytest:
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/test_loss.py -k clip
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/env.sh dev,bench

echo "== ruff"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .

echo "== pytest"
# One thread: the tiny models are too small for more, and sums come out in the same order everywhere.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q "$@"
