#!/usr/bin/env bash
# lm-evaluation-harness in a virtual environment of its own: bench/lm_eval.venv, which is not committed. fewtune is put into it, too, for
# what `fewtune export-lm-eval` writes runs there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python="${PYTHON:-python3.11}"
"$python" -m venv lm_eval.venv
lm_eval.venv/bin/python -m pip install --quiet torch==2.13.0
lm_eval.venv/bin/python -m pip install --quiet lm_eval==0.4.13 transformers==5.23.0 accelerate==1.15.0
lm_eval.venv/bin/python -m pip install --quiet -e ..
echo "ready: bench/lm_eval.venv"
