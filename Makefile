# The two commands: `make train` and `make test`. Both build .venv first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/countdown_kl_cov

.PHONY: train test setup lint types pytest study clean

train: setup
	$(BIN)/covrl train --config=configs/countdown_kl_cov.py --workdir=$(RUN)

test: lint types pytest

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

types: setup
	$(BIN)/basedpyright

pytest: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0

# Every Countdown configuration, three seeds each: an hour or two.
study: setup
	$(BIN)/python tests/benchmarks/study.py

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache .hypothesis
