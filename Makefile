# The two commands: `make train` and `make test`. Both build .venv first.
#   make test-all   all tests, the slow ones included
#   make docs       API reference in build/docs, readable offline
#   make study      every Countdown recipe with three seeds
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/countdown_kl_cov
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --max-worker-restart=0

.PHONY: train test test-all setup lint types pytest docs study clean

train: setup
	$(BIN)/covrl train --config=countdown:kl_cov --workdir=$(RUN)

test: lint types pytest

test-all: lint types
	$(PYTEST)

setup: $(VENV)/.ready

# uv where it is installed, else venv and pip.
$(VENV)/.ready: pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet -e '.[dev]'; \
	fi
	@touch $@

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/check_prose.py

types: setup
	$(BIN)/basedpyright

pytest: setup
	$(PYTEST) -m "not slow"

docs: setup
	$(BIN)/python tests/make_docs.py build/docs

# Every Countdown recipe with three seeds: about an hour.
study: setup
	$(BIN)/python tests/benchmarks/study.py

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache .hypothesis build
