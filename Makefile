# `make help` lists the targets. Variables, set as in `make train PYTHON=python3.12`:
#   PYTHON       the interpreter that creates .venv where there is none; `make gpu-check` and its dry run use it directly
#   TORCH_INDEX  the package index for torch, for example one with PyTorch's CPU builds
#                (on Linux the default package is the CUDA build, several GB)
#   ARGS         overrides for `make train`, for example ARGS="seed=1 name=second", or options for `make lineage`,
#                `make lock` and `make gpu-check`, for example ARGS="--seconds 300 --only scan,step"
PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help train test lint lineage wheel lock audit clean gpu-check gpu-check-dry
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

train: .venv/installed ## create .venv, install, and train a small model in five minutes
	$(BIN)/mambabyte train experiment=quickstart $(ARGS)

test: lint ## lint, then run the tests, one process per core
	$(BIN)/python -m pytest -q -n auto --dist loadfile

lint: .venv/installed-dev ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lineage: .venv/installed-dev ## build the page on state space models, S6 and Mamba: lineage/lineage.html
	$(BIN)/mambabyte lineage $(ARGS)

wheel: .venv/installed-dev ## build dist/mambabyte-*.whl
	$(BIN)/python -m build --wheel --no-isolation

lock: .venv/installed-release ## pin the Docker image's packages by version and hash (docker/lock.sh)
	PATH="$(CURDIR)/$(BIN):$$PATH" TORCH_INDEX="$(TORCH_INDEX)" docker/lock.sh $(ARGS)

audit: .venv/installed-release ## check those packages for known vulnerabilities and for their licences
	$(BIN)/python docker/audit.py

gpu-check: ## test and measure on a GPU with $(PYTHON), in nine minutes, without a network
	PYTHONPATH=. $(PYTHON) benchmarks/gpu/check.py $(ARGS)

gpu-check-dry: .venv/installed-dev ## the same at toy sizes on the CPU, to see that each stage runs
	PYTHONPATH=. $(BIN)/python benchmarks/gpu/check.py --dry $(ARGS)

clean: ## remove .venv, builds and caches; keep runs/ and data/
	rm -rf .venv dist build gpu-check-packed .pytest_cache .ruff_cache .mypy_cache
	find mambabyte tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

.venv/torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
	  echo 'make: $(PYTHON) is missing or unsupported; mambabyte needs Python 3.10 to 3.13, try make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo 'make: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv' >&2; exit 1; }
	@echo 'make: installing torch into .venv (up to several GB, minutes)$(if $(TORCH_INDEX), from $(TORCH_INDEX))'
	@$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch || { \
	  echo 'make: torch could not be installed; see the error from pip above, and TORCH_INDEX in the Makefile' >&2; exit 1; }
	@touch $@

.venv/installed: .venv/torch pyproject.toml
	@echo 'make: installing mambabyte and its other dependencies'
	@$(PIP) install --quiet -c constraints.txt --editable . || { \
	  echo 'make: the dependencies could not be installed; see the error from pip above' >&2; exit 1; }
	@touch $@

.venv/installed-dev: .venv/installed
	@echo 'make: installing the development tools'
	@$(PIP) install --quiet -c constraints.txt --editable '.[dev]' || { \
	  echo 'make: the development tools could not be installed; see the error from pip above' >&2; exit 1; }
	@touch $@

.venv/installed-release: .venv/installed
	@echo 'make: installing the tools for `make lock` and `make audit`'
	@$(PIP) install --quiet -c constraints.txt --editable '.[release]' || { \
	  echo 'make: the tools for `make lock` and `make audit` could not be installed; see the error from pip above' >&2; exit 1; }
	@touch $@
