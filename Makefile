# Every target works on a fresh machine that has Python 3.11 or newer, git and make.
VENV    ?= .venv
PYTHON  ?= python3
PROFILE ?= .
BIN     := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
export PYTHONPATH := $(CURDIR)

.DEFAULT_GOAL := help
.PHONY: help setup repro full report check format test test-slurm test-all bench lock clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

# The stamp holds the lock that was installed: the environment is reused while the two are equal.
# The lock names every package, so pip resolves nothing (--no-deps).
setup:  ## create the environment (VENV=path puts it elsewhere) from requirements.lock
	@cmp -s requirements.lock $(VENV)/requirements.installed || { \
	  set -e; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; name another with PYTHON=")'; \
	  echo "installing the pinned packages into $(VENV)"; \
	  $(PYTHON) -m venv $(VENV); \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock; \
	  cp requirements.lock $(VENV)/requirements.installed; }

repro: setup  ## compute what is missing, then render the reports (PROFILE=profiles/smoke for another scale)
	@cd $(PROFILE) && python -m bench repro

full:  ## every study at five seeds, and a verdict on the papers' claims (profiles/full)
	@$(MAKE) --no-print-directory repro PROFILE=profiles/full
	@cd profiles/full && python -m bench claims --readme

report: setup  ## render the reports again from the committed records
	@cd $(PROFILE) && python -m bench render

check: setup  ## lint, format and types
	@ruff check . && ruff format --check . && mypy

format: setup  ## mend what lint and format can mend
	@ruff check --fix . ; ruff format .

test: setup  ## every test that takes less than a minute and needs no cluster
	@python -m pytest -m "not slow and not slurm" -n 2 --dist loadfile --no-loadscope-reorder

test-slurm: setup  ## the tests on a real SLURM cluster, which they start (as root; Debian's slurm-wlm and munge)
	@python -m pytest -m slurm -n 4 --dist worksteal tests/slurm

test-all: setup  ## every test
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: setup  ## measure speed and memory against peers, as ratios (under 15 minutes on two cores)
	@python -m benchmarks

lock:  ## resolve pyproject.toml again and write requirements.lock
	@$(PYTHON) tools/lock.py

clean:  ## remove what can be made again (the store of computed cells, work/, is kept)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis reports-partial dvc_plots
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
