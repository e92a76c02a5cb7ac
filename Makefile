# What a person or the pipeline does with genhook; `make` alone lists it.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed
PIP := -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet
NEWEST := .venv/newest
WORKERS ?= 2

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo run test races lint check bench chaos mutants format constraints clean python

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with genhook and its tools, at the versions of constraints.txt

# DATABASE=postgres runs it on a PostgreSQL server that comes as a package.
demo: $(STAMP) ## Show a generation by callback, one by polling, and one whose callback is lost
	@$(BIN)/genhook demo $(if $(DATABASE),--database $(DATABASE))

run: $(STAMP) ## Serve with throwaway keys and the sandbox as upstream
	@$(BIN)/genhook serve --dev --sandbox

# COVERAGE=1 measures the branches that the tests take, and fails below the floor in pyproject.toml.
test: $(STAMP) ## Run the tests, in parallel
ifdef COVERAGE
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -n $(WORKERS) --dist worksteal
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report
else
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal
endif

# SEED=… repeats the pauses of the run that printed it.
races: $(STAMP) ## Run the tests with random pauses, which find what relies on who comes first
	@$(BIN)/pytest -p tests.pauses -n $(WORKERS) --dist worksteal $(if $(SEED),--randomly-seed=$(SEED))

lint: $(STAMP) ## The quick half of check: style, format, import direction, tidiness
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted: run make format."; exit 1; }
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/pytest tests/test_tidy.py

check: lint ## Everything that is checked without running the service: lint and types
	@$(BIN)/mypy

# NAMES="callbacks sender" picks measurements, BENCH=--quick takes three minutes instead of ten.
bench: $(STAMP) ## Measure, and compare with the targets in bench/floors.py
	@$(BIN)/python $(INSTALL) --constraint constraints.txt --group bench
	@$(BIN)/python -m bench $(BENCH) $(NAMES)

# NAMES="kill storage" picks suites, CHAOS=--quick takes four minutes instead of about 25.
chaos: $(STAMP) ## Inject faults: kill -9, bad disks, a faulty upstream, hostile subscribers
	@$(BIN)/python $(INSTALL) --constraint constraints.txt --group chaos
	@$(BIN)/python -m chaos $(CHAOS) $(NAMES)

# NAMES="no-sync two-workers" picks mutations. All of them take hours.
mutants: $(STAMP) ## Mutation tests: break the service in many ways, and expect tests to fail
	@$(BIN)/python -m chaos.mutants $(NAMES)

format: $(STAMP) ## Format, and repair what the linter can
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

# Resolved in an environment of its own, so that nothing left over in .venv gets pinned.
# setuptools is in it only because Python 3.11 puts it into every new environment.
constraints: python ## Pin the newest versions that pyproject.toml allows
	@rm -rf $(NEWEST) && $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	@$(NEWEST)/bin/python $(INSTALL) --editable ".[demo,lambda]" --group dev --group bench --group chaos
	@$(NEWEST)/bin/python $(PIP) list --format=freeze --exclude genhook --exclude setuptools \
		> $(NEWEST)/constraints.txt
	@mv $(NEWEST)/constraints.txt constraints.txt
	@rm -rf $(NEWEST)

clean: ## Remove .venv and every cache; databases stay
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis \
		.schemathesis .coverage* dist
	@find service tests bench chaos -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "genhook needs Python 3.11 or newer; found none as '$(PYTHON)'." >&2; \
		echo "Name one: make install PYTHON=/path/to/python3.11" >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(MAKE) python
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python $(INSTALL) --constraint constraints.txt "pip>=25.1"
	@$(BIN)/python $(INSTALL) --constraint constraints.txt --editable ".[demo,lambda]" --group dev
	@touch $@
