# Each target makes its own .venv on a fresh machine with Python 3.11 or later; a second run starts at once.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lint bench docs
.DELETE_ON_ERROR:

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready  ## the main job on the embedded pair, with a report
	$(BIN)/driftgate demo --out demo

test: .venv/ready  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python docs/generate.py --check

bench: .venv/ready  ## the chunked head against full logits, and what weights cost, side by side
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/head.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/weights.py

docs: .venv/ready  ## regenerate the pages that are made from the code
	$(BIN)/python docs/generate.py
