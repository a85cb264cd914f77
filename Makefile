# PYTHON picks the interpreter; PIP_ARGS reaches every pip install, for example another package index for a CPU or a
# CUDA build of torch: make setup PIP_ARGS="--extra-index-url https://..."; ARGS reaches train.py: make train ARGS="seed=1"
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
VENV := .venv
PY := $(VENV)/bin/python
QUICKSTART := shards/quickstart
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONWARNINGS=ignore
BENCHMARKS := scripts/bench/evaluation.py scripts/bench/model.py scripts/bench/loader.py \
	scripts/bench/optimizer.py scripts/bench/scaling.py scripts/bench/plan.py \
	scripts/bench/checkpoint.py scripts/bench/meters.py scripts/bench/synthetic.py
FAST := not slow and not e2e and not distributed and not gpu

.PHONY: help setup data train test test-fast lint format gpu-check bench bench-peers clean
.DEFAULT_GOAL := help

help:  ## show these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## create .venv and install the pinned requirements

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "toto-train needs Python 3.11 or newer, this is " + sys.version' 
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q $(PIP_ARGS) -r requirements.lock
	$(PY) -m pip install -q $(PIP_ARGS) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.oracle: $(VENV)/.installed requirements-oracle.lock
	$(PY) -m pip install -q $(PIP_ARGS) --no-deps --ignore-requires-python -r requirements-oracle.lock
	@touch $@

data: $(QUICKSTART)/.built  ## build the quickstart shards

$(QUICKSTART)/.built: $(VENV)/.installed $(wildcard quickstart/*)
	$(PY) scripts/build_shards.py source=quickstart out=$(QUICKSTART) replace=true
	@touch $@

train: data  ## pretrain the quickstart model, score it, write runs/quickstart/report.html
	$(PY) train.py name=quickstart $(ARGS)

test: $(VENV)/.oracle  ## run all tests
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.oracle  ## run the quick tests (under three minutes)
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist worksteal -m "$(FAST)"

lint: $(VENV)/.installed  ## check format, style and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed  ## format the code
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

gpu-check: $(VENV)/.oracle  ## run the tests that need CUDA, parity and the model's benchmark on it
	$(PY) -m pytest -m gpu
	BENCH_DEVICE=cuda $(PY) scripts/bench/model.py

bench: $(VENV)/.installed  ## run the quick benchmarks, write bench.md
	@set -e; export PYTHONWARNINGS=ignore TORCH_CPP_LOG_LEVEL=ERROR; \
	{ $(PY) scripts/bench/table.py; for file in $(BENCHMARKS); do $(PY) $$file --quick; done; } > bench.md.tmp
	@mv bench.md.tmp bench.md; cat bench.md

bench-peers: .venv-peers/.installed  ## install the packages that benchmarks compare with, into .venv-peers

.venv-peers/.installed: requirements-peers.lock
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q $(PIP_ARGS) -r requirements-peers.lock
	@touch $@

clean:  ## remove .venv, .venv-peers, the quickstart shards and caches (runs and your shards stay)
	rm -rf $(VENV) .venv-peers $(QUICKSTART) .pytest_cache .ruff_cache .mypy_cache .hypothesis
