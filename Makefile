# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
REPO   ?=
OUT    ?= runs

RUNTIME := $(VENV)/.runtime
DEV     := $(VENV)/.dev

.PHONY: help demo test check lint types floors unit soak bench clean

help:
	@echo "make demo            adapt and measure a model on three PyPI packages (REPO=path: on your repository)"
	@echo "make test            every check: lint, types, floors, tests"
	@echo "make check           the quick part of it: no model downloads"
	@echo "make soak            100,000 sandbox runs and 10,000 mixed verdicts"
	@echo "make bench           side-by-side measurements into benchmarks/results/"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "codemill needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,serve]'
	@touch $@

demo: $(RUNTIME)
	$(BIN)/codemill run recipes/quickstart.yaml --out $(OUT) $(if $(REPO),--set 'corpus.sources=["path:$(abspath $(REPO))"]')

test: lint types floors
	$(BIN)/python -m pytest

check: lint types floors unit

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

floors: $(DEV)
	$(BIN)/lint-imports

unit: $(DEV)
	$(BIN)/python -m pytest -m "not models and not network"

soak: $(DEV)
	$(BIN)/python benchmarks/sandbox.py --soak 100000
	$(BIN)/python benchmarks/sandbox.py --mixed

bench: $(DEV)
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/sandbox.py
	$(BIN)/python benchmarks/sandbox.py --workers
	$(BIN)/python benchmarks/sandbox.py --workspace
	$(BIN)/python benchmarks/cli.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info
