# One command each; every command sets up what it needs. Only Python 3.11 or newer and make must be there.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check fix reference clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13; do \
	$$name -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
TORCH := $(shell grep '^torch==' constraints.txt)
# One thread a process and a process a core: the tests' models are too small to gain from threads.
# Files in their order: the few slow tests of the flows would else come last, and one process would wait for the other.
# Compiled files are kept, whatever the environment says: each process would else compile every test and the package again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

help: ## say what can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile

setup: $(READY) ## virtual environment with everything pinned

# torch goes first and alone, so that the index's own build for this machine is taken before anything else asks for one.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## tune a real language model on sixteen labelled reviews
	$(BIN)/python examples/reviews/demo.py

test: $(READY) ## every test
	$(PYTEST)

check: $(READY) ## format, lint, types, layers, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src
	$(BIN)/lint-imports
	$(PYTEST) -m "not slow"

fix: $(READY) ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(READY) ## the Python interface as pages in docs/reference, from its docstrings
	$(BIN)/python -m pdoc fewtune '!fewtune.' -o docs/reference

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) build dist docs/reference src/*.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
