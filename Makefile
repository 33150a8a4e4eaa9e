# Everything runs in .venv, which is made on first use and again when setup.cfg changes.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format bench bench-convert clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: setup.cfg
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "Python 3.10 to 3.13 is needed, found %d.%d: make PYTHON=python3.12 ..." % v)'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "No venv: install it (Debian and Ubuntu: apt install python3-venv), then run make again." >&2; exit 1; }
	@echo "Setting up $(VENV): a few minutes, once."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

demo: $(VENV)/ready ## convert the checkpoint in the repository, load it, print verses
	@$(RUN) -m demo

test: $(VENV)/ready ## run the tests
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/ready ## run the tests that take minutes or gigabytes
	@$(RUN) -m pytest -q -m slow
	@GPT2_SAVEDMODEL_FUZZ=2000 $(RUN) -m pytest -q tests/convert/test_fuzz.py

lint: $(VENV)/ready ## ruff and mypy
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: $(VENV)/ready ## let ruff mend what it can
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

# PEERS is a Python that has the engines of the extra `bench`; those that it does not have are left out.
PEERS ?= $(RUN)
bench: $(VENV)/ready ## time generation beside other engines (FULL=1: with 2.6 B parameters, too)
	@$(RUN) -m pip install --quiet --disable-pip-version-check matplotlib
	@$(RUN) -m benchmarks.decode --shape distill $(if $(FULL),generate) --peers-python $(PEERS) --write docs/performance.md --plot docs

bench-convert: $(VENV)/ready ## time the conversion (FULL=1: with 2.6 B parameters, too)
	@$(RUN) -m benchmarks.convert --shape distill $(if $(FULL),generate) --write docs/performance.md

clean: ## remove the environment and what tools left
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
