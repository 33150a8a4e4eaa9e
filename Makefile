# Everything runs in .venv, which is made on first use and again when setup.cfg changes. `make demo` installs what the
# commands need; the other targets add PyTorch and what the tests use.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q

# What `make test-fast` runs: no TensorFlow graph is made, and collecting imports neither TensorFlow, PyTorch nor
# transformers, which tests/test_architecture.py checks.
FAST := tests/attacks tests/gpt2_savedmodel tests/support tests/test_architecture.py \
	$(filter-out %/test_tokenizer_json.py,$(wildcard tests/tokenization/test_*.py)) \
	tests/convert/formats/test_sharding.py tests/convert/output/test_hashing.py tests/convert/test_tensors.py \
	tests/convert/torch_format/test_pickle_machine.py tests/convert/verification/test_report.py \
	tests/exports/test_direct_file.py
FAST_OPTIONS := -m 'not slow and not tensorflow'

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast fast-files test-slow lint format dist bench bench-convert bench-train clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(RUN):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "Python 3.10 to 3.13 is needed, found %d.%d: make PYTHON=python3.12 ..." % v)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "No venv: install it (Debian and Ubuntu: apt install python3-venv), then run make again." >&2; exit 1; }

$(VENV)/demo-ready: setup.cfg | $(RUN)
	@echo "Setting up $(VENV): a few minutes, once."
	@$(PIP) --editable .
	@touch $@

$(VENV)/test-ready: setup.cfg | $(RUN)
	@echo "Setting up $(VENV) for the tests: a few minutes, once."
	@$(PIP) --editable '.[test]'
	@touch $(VENV)/demo-ready $@

demo: $(VENV)/demo-ready ## convert the checkpoint in the repository to out/song-ci, load it, print verses
	@$(RUN) -m demo --output out/song-ci

test: $(VENV)/test-ready ## run the tests
	@$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/test-ready ## run the tests that make no TensorFlow graph, in less than a minute
	@$(PYTEST) -n 2 $(FAST_OPTIONS) $(FAST)

test-slow: $(VENV)/test-ready ## run the tests that take minutes or gigabytes
	@$(RUN) -m pytest -q -m slow
	@GPT2_SAVEDMODEL_FUZZ=2000 $(RUN) -m pytest -q tests/convert/test_fuzz.py

fast-files: # for the test that looks at what they import
	@echo $(FAST)

lint: $(VENV)/test-ready ## ruff and mypy
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

format: $(VENV)/test-ready ## let ruff fix what it can
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

dist: $(VENV)/demo-ready ## build wheel and sdist, and try the wheel in a fresh environment
	@$(PIP) --editable '.[dist]'
	@.ci/dist $(RUN)

# PEERS is a Python that has the engines of the extra `bench`; those that it does not have are left out.
PEERS ?= $(RUN)
bench: $(VENV)/test-ready ## time generation next to other engines (FULL=1: with 2.6 B parameters, too)
	@$(PIP) matplotlib
	@$(RUN) -m benchmarks.decode --shape distill $(if $(FULL),generate) --peers-python $(PEERS) --write docs/performance.md --plot docs

bench-convert: $(VENV)/test-ready ## time the conversion (FULL=1: with 2.6 B parameters, too)
	@$(RUN) -m benchmarks.convert --shape distill $(if $(FULL),generate) --write docs/performance.md

bench-train: $(VENV)/test-ready ## time a step of training next to PyTorch (FULL=1: 2.6 B and bfloat16, too)
	@$(RUN) -m benchmarks.training --group full smallest lora $(if $(FULL),bfloat16 generate) --write docs/performance.md

clean: ## remove the environment and what tools left
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
