# Everything a newcomer types: `make demo` and `make test`. Both make their own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Several small matrix products at a time gain nothing from more threads than cores; tests run two at a time.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow test-gpu test-kernels lint docs release-check bench bench-gpu clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

env: $(VENV)/.ready  ## the environment of everything below, in $(VENV)

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: tttvideo needs Python 3.11 or newer; say which with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

DEMO := data/flash-order
demo: env  ## real MP4 files, training, long-clip evaluation, export: minutes on 2 CPU cores
	$(BIN)/tttvideo make-data flash-order --out $(DEMO)/videos
	$(BIN)/python train.py --config configs/demo.yaml --resume auto
	$(BIN)/tttvideo evaluate runs/demo --data $(DEMO)/videos --frames 8,16,24,all --sampling dense fps=1 uniform=16
	$(BIN)/tttvideo export runs/demo --out runs/demo/export
	$(BIN)/tttvideo make-data flash-order --out $(DEMO)/fresh --seed 1 --split val=300
	$(BIN)/tttvideo evaluate runs/demo/export --data $(DEMO)/fresh --out runs/demo/fresh

test: env  ## the whole quick test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu and not kernels"

test-slow: env  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-gpu: env  ## the tests that need a CUDA device
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m gpu tests/ttt/kernels

test-kernels: env  ## kernels at many shapes through the interpreter; compilation of every configuration
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m kernels

lint: env  ## ruff and pyright, as pre-commit runs them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

docs: env  ## the documentation as a site, in site/; broken links and references are errors
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict --site-dir site

release-check: env  ## wheel and sdist; the wheel trains, evaluates, exports and classifies in an empty environment
	rm -rf dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/release_check.py dist/*.whl $(PYTHON)

bench: env  ## side-by-side measurements of the layer on this machine
	$(BIN)/python -m benchmarks.layer --json runs/bench-layer.json

bench-gpu: env  ## the kernels against everything else, on a GPU
	$(BIN)/python -m benchmarks.kernels --gpu --json runs/bench-gpu.json

clean:  ## removes the environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
