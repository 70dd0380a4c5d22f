# Everything runs in its own environment, .venv, which is created on first use.
# Needs Python 3.11 or later, a C++ compiler and make; `make oracle` and `make bench` also need npm
# and cmake.
# Without make: python3 install.py. Options of llama.cpp's build in CMAKE_ARGS are kept.
PYTHON ?= python3
MODEL  ?=
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: help demo chat test slow oracle check lint format types dist gpu-check bench clean

.DEFAULT_GOAL := help

help:  ## list these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.run  ## convert the small model, verify it, talk with it
	@$(BIN)/python tests/demo.py

chat: $(VENV)/.run  ## talk with a model: make chat MODEL=20b
	@test -n "$(MODEL)" || { echo "name a model: make chat MODEL=20b" >&2; exit 2; }
	@$(BIN)/gptoss-run chat "$(MODEL)"

test: $(VENV)/.dev  ## run the quick tests
	$(BIN)/pytest -m "not slow and not oracle"

slow: $(VENV)/.dev  ## run the long tests
	$(BIN)/pytest -m "slow and not oracle"

oracle: $(VENV)/.oracle  ## compare with llama.cpp's converter, transformers, openai-harmony
	$(BIN)/pytest -m oracle

check: format lint types test  ## format, lint, types and quick tests

format: $(VENV)/.dev  ## check the formatting
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev  ## run the linter
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## check the types for Linux, macOS and Windows
	$(BIN)/mypy --platform linux gptoss tests install.py
	$(BIN)/mypy --platform darwin gptoss tests install.py
	$(BIN)/mypy --platform win32 gptoss tests install.py

dist: $(VENV)/.dev  ## build wheel and source archive, check and install them
	$(BIN)/python tests/dist.py

gpu-check:  ## check layers, memory and speed on an NVIDIA card, if there is one
	@python=$(BIN)/python; test -x $$python || python=$(PYTHON); \
	$$python tests/gpu_check.py || test $$? = 3

bench: $(VENV)/.oracle  ## measure a 20b-sized model: 55 GB of disk, half an hour, Linux
	$(BIN)/python tests/bench.py
	$(BIN)/python tests/bench_harmony.py
	$(BIN)/python tests/bench_engine.py
	$(BIN)/python tests/bench_parallel.py
	$(BIN)/python tests/bench_server.py

clean:  ## remove the environment and all caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.run: pyproject.toml install.py
	@$(PYTHON) install.py --venv $(VENV)
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install --editable ".[run,serve,python,mcp,browser,remote,keyring,dev]"
	@touch $@

$(VENV)/.oracle: $(VENV)/.dev tests/support/fetch_peers.py
	$(PIP) install --editable ".[run,serve,python,mcp,browser,remote,keyring,dev,oracle]"
	PYTHONPATH=tests $(BIN)/python tests/support/fetch_peers.py
	@touch $@
