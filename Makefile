# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo train-demo natural test lint docs posterior clean

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.demo

# A tiny prior from seven bundled pictures, and what it makes of an eighth: under three minutes on two cores.
train-demo: $(VENV)/.installed
	$(BIN)/python -m experiments.train_demo

# The prior that ships, from the folder of photographs DATA; some hours on 2 cores.
natural: $(VENV)/.installed
	for run in 1 2 3; do $(BIN)/python -m experiments.train --config-name natural_$$run data=$(DATA) || exit 1; done

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy invdiff benchmarks experiments

# The documentation site, into site/; a warning is an error.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

posterior: $(VENV)/.installed
	$(BIN)/python -m benchmarks.posterior

# Made anew whenever the dependencies change, and only then.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]"
	touch $@

# All that the commands above make again by themselves; runs/ stays, as it holds hours of training.
clean:
	rm -rf $(VENV) build dist site *.egg-info demo_out
