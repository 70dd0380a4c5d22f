# Everything runs in an environment of its own, made on first use in .venv. Needs: Python 3.11 or
# later, a C++ compiler, make; `make oracle` and `make bench` also npm. On Windows without make see README.
PYTHON ?= python3
MODEL  ?=
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: demo chat test slow oracle check lint format types bench clean

# The tiny model bundled with the tests: convert, verify, talk.
demo: $(VENV)/.run
	@$(BIN)/python tests/demo.py

# make chat MODEL=gpt-oss-20b.gguf
chat: $(VENV)/.run
	@test -n "$(MODEL)" || { echo "say which: make chat MODEL=gpt-oss-20b.gguf" >&2; exit 2; }
	@$(BIN)/gptoss-run chat "$(MODEL)"

test: $(VENV)/.dev
	$(BIN)/pytest -m "not slow and not oracle"

slow: $(VENV)/.dev
	$(BIN)/pytest -m "slow and not oracle"

# Against software written by others: llama.cpp's converter, transformers, openai-harmony.
oracle: $(VENV)/.oracle
	$(BIN)/pytest -m oracle

check: format lint types test

format: $(VENV)/.dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy --platform linux gptoss tests
	$(BIN)/mypy --platform darwin gptoss tests
	$(BIN)/mypy --platform win32 gptoss tests

# 20b-sized; about 55 GB of disk and half an hour. See README, "Measured".
bench: $(VENV)/.oracle
	$(BIN)/python tests/bench.py
	$(BIN)/python tests/bench_harmony.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# llama-cpp-python is compiled here the first time: about ten minutes on two cores.
$(VENV)/.run: pyproject.toml | $(BIN)/pip
	@echo "Installing; llama.cpp is compiled from source the first time, which takes minutes."
	$(PIP) install --editable ".[run]"
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install --editable ".[run,dev]"
	@touch $@

$(VENV)/.oracle: $(VENV)/.dev tests/support/fetch_peers.py
	$(PIP) install --editable ".[run,dev,oracle]"
	PYTHONPATH=tests $(BIN)/python tests/support/fetch_peers.py
	@touch $@
