# What a person or a CI machine calls. Needs Python 3.11 or newer, make, bash and git; sets up everything else itself.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

SHELL := bash
# In the order given, whatever -j says: `make check test` ends with the last line of the tests.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all faults soak check bench fuzz api-check audit docs clean

help: ## list what can be made
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 18

quickstart: $(INSTALLED) ## set up, start the embedded Kafka, run the whole main job on real images
	@echo "==> quickstart: the embedded Kafka, then the demo: images -> features -> three experiments"
	@$(BIN)/featurectl broker up
	@$(BIN)/featurectl demo

test: $(INSTALLED) ## run all tests but the slow ones, on a real Kafka that they start themselves
	@echo "==> test: pytest"
	@$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-all: $(INSTALLED) ## run all tests and those that take minutes: every fault, three brokers, five minutes of soak
	@echo "==> test-all: pytest"
	@$(BIN)/python -m pytest

faults: $(INSTALLED) ## kill, stop, cut off and corrupt everything; one line a fault, the mutants, the soak's slopes, the fuzzer
	@echo "==> faults: every fault on real brokers, and the oracle's verdict"
	@$(BIN)/python -m tests.faults

MINUTES ?= 30
SEED := $(or $(SEED),$(shell echo $$RANDOM))
soak: $(INSTALLED) ## a producer, five trainers and random faults for MINUTES=30, from SEED; the oracle at the end
	@echo "==> soak: $(MINUTES) minutes of random faults, seed $(SEED)"
	@$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)

check: $(INSTALLED) ## lint, format, types, imports; changes nothing
	@echo "==> check: ruff check"
	@$(BIN)/ruff check
	@echo "==> check: ruff format"
	@$(BIN)/ruff format --check
	@echo "==> check: mypy"
	@$(BIN)/mypy
	@echo "==> check: import contracts"
	@$(BIN)/lint-imports

bench: $(INSTALLED) ## measure against bare loops over the same bytes, as ratios
	@echo "==> bench: featurestream against bare loops, in one run"
	@$(BIN)/python -m benchmarks

fuzz: $(INSTALLED) ## a million inputs against all that decodes what comes from a topic
	@echo "==> fuzz: atheris, from the golden messages and the hostile corpus"
	@$(BIN)/python -m tests.hostile.fuzz --runs 1000000

api-check: $(INSTALLED) ## ask the gateway what its OpenAPI document allows, and much that it does not
	@echo "==> api-check: schemathesis over the OpenAPI document"
	@$(BIN)/python -m tests.gateway.api_check

audit: $(INSTALLED) ## compare the installed packages with known advisories; needs the network
	@echo "==> audit: pip-audit"
	@$(BIN)/pip-audit --local --skip-editable

docs: $(INSTALLED) ## build the documentation as a site, strictly, into site/
	@echo "==> docs: mkdocs build --strict"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "==> docs: open site/index.html"

clean: ## delete caches and built files; keeps .venv, runs and the broker's data
	@echo "==> clean: caches and built files (delete $(VENV) by hand to set up anew)"
	@rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Of pip's output only the large downloads are shown. Its errors go to standard error and are shown whole.
SHOW_PROGRESS := { grep --line-buffered -oE '^ *Downloading [^ ]+ \([0-9.]+ [MG]B\)|^Installing collected packages' || true; }

# Installed once, and again when pyproject.toml has changed; editable, so that sources are used as they stand.
$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "==> setup: installing into $(VENV); PyTorch makes the first time take minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' # the first with --group
	@set -o pipefail; $(BIN)/python -m pip install --editable '.[all]' --group dev | $(SHOW_PROGRESS)
	@touch $@

TOO_OLD := featurestream needs Python 3.11 or newer, and $(PYTHON) is %d.%d: name another one with PYTHON=python3.12
$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || \
		{ echo "featurestream needs Python 3.11 or newer, and there is no $(PYTHON): name one with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("$(TOO_OLD)" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	@echo "==> setup: a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
