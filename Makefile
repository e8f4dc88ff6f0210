# `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
STAMP := $(VENV)/.stamp
BIN := $(VENV)/bin
UV := $(VENV)/.uv/bin/uv
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$name; break; fi; done)

# Options for `dflare up`, for example UP="--nodes 128 --hardware-time zero".
UP ?=
# Test processes at a time; each has its own PostgreSQL and Temporal. Tests of one file stay together.
JOBS ?= 2
DIST ?= loadfile
# The longest files come first (tests/conftest.py), so that no process waits long for the other.
XDIST = -n $(JOBS) --dist $(DIST) --no-loadscope-reorder
# Further arguments of pytest, for example T="tests/site -k broken".
T ?=
BENCH ?=

export UV_SYSTEM_CERTS := 1

# What the portal is built from, and what says that it was.
PORTAL := portal/dist/.stamp
PORTAL_SOURCES := $(shell find portal \( -name node_modules -o -name dist -o -name __pycache__ \) \
	-prune -o -type f -print)

.PHONY: help up down portal portal-api portal-if-possible test test-lab test-long test-chaos check \
	format bench clean $(VENV)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(STAMP) portal-if-possible ## start everything and return when it is healthy
	@$(BIN)/dflare up $(UP)

down: $(STAMP) ## stop everything
	@$(BIN)/dflare down

portal: $(PORTAL) ## build the portal, with Node of this machine or of a Python package

portal-api: $(STAMP) ## write the portal's types anew from the API's document
	@$(BIN)/python tests/openapi_document.py >portal/openapi.json.new
	@mv portal/openapi.json.new portal/openapi.json
	@$(BIN)/python portal/build.py --api

portal-if-possible: $(STAMP)
	@$(MAKE) -s --no-print-directory portal || \
		echo "Everything else works without the portal; make portal tries again." >&2

test: $(STAMP) portal-if-possible ## run the tests
	@$(BIN)/pytest -m "not lab and not long" $(XDIST) $(T)

test-lab: $(STAMP) ## run the tests that need real parts
	@$(BIN)/python -m dflare.embedded.packages .lab/slurm-packages
	@$(BIN)/pytest -m lab $(XDIST) $(T)

test-long: $(STAMP) ## run the tests that take too long for every change
	@$(BIN)/pytest -m long --timeout 0 $(XDIST) $(T)

test-chaos: test-long ## every step of every saga cut, repeated and failed on its own

check: $(STAMP) ## formatting, lint, types, imports, files
	@$(BIN)/ruff format --check --quiet . || \
		{ echo "Some files are not formatted; run make format." >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/basedpyright
	@said=$$($(BIN)/lint-imports 2>&1) || { echo "$$said" >&2; exit 1; }
	@$(BIN)/python .ci/check_files.py

format: $(STAMP) ## format the code and repair what the linter can
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format --quiet .

bench: $(STAMP) ## measure; prints the tables of bench/
	@$(BIN)/python -m bench $(BENCH)

$(PORTAL): $(PORTAL_SOURCES) | $(STAMP)
	@$(BIN)/python portal/build.py
	@touch $@

clean: ## remove caches, build outputs and the environment; data stays (dflare down --purge)
	@rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	@rm -rf portal/dist portal/node_modules
	@find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV): $(STAMP)

$(STAMP): requirements/bootstrap.lock requirements/dev.lock requirements/runtime.in \
		pyproject.toml hatch_build.py
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer is needed and none was found on PATH. Install it" \
			"(Debian: apt-get install python3 python3-venv), or run make PYTHON=/path/to/python3." >&2; \
		exit 1; fi
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		"$(PYTHON)" -m venv --clear $(VENV) || { \
			rm -rf $(VENV); \
			echo "The environment could not be made. Debian: apt-get install python3-venv." >&2; \
			exit 1; }; fi
	@if ! $(UV) --version 2>/dev/null | grep -q " $$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' \
			requirements/bootstrap.lock)"; then \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
			--require-hashes --upgrade --target $(VENV)/.uv -r requirements/bootstrap.lock; fi
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@
