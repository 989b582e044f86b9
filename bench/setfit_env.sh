#!/usr/bin/env bash
# SetFit in a virtual environment of its own, for it needs transformers 4: bench/setfit.venv, which is not committed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python="${PYTHON:-python3.11}"
"$python" -m venv setfit.venv
setfit.venv/bin/python -m pip install --quiet torch==2.13.0
setfit.venv/bin/python -m pip install --quiet setfit==1.1.3 sentence-transformers==5.7.0 transformers==4.57.6
echo "ready: bench/setfit.venv"
