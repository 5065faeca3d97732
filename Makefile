# `make test` needs git, make and a Python from 3.11 on; everything else goes into .venv. `make help` lists the rest.

PYTHON ?= python3
VERSIONS := 3.11 3.12 3.13
PYTEST := -m pytest -n auto --dist worksteal -m "not soak and not benchmark"

.PHONY: help test test-all $(VERSIONS:%=test-%) check docs demo bench soak reliability clean

help:
	@echo "make test       the tests, on real servers, in .venv"
	@echo "make test-all   the tests under each of Python $(VERSIONS) that is on PATH"
	@echo "make test-3.12  the tests under one of them"
	@echo "make check      format, lint, types"
	@echo "make docs       the documentation as a site, in build/docs; a link that leads nowhere fails"
	@echo "make demo       the demonstration"
	@echo "make bench      timings"
	@echo "make soak       long runs"
	@echo "make reliability  the check under every fault, a minute each; its table goes into the docs"
	@echo "make clean      remove what the others have made"

test: .venv/test.stamp
	@.venv/bin/python $(PYTEST)

test-all:
	@set -e; for version in $(VERSIONS); do \
		if python$$version --version >/dev/null 2>&1; then $(MAKE) --no-print-directory test-$$version; \
		else echo "Python $$version is not on PATH: skipped"; fi; \
	done

$(VERSIONS:%=test-%): test-%: .env-%/test.stamp
	@.env-$*/bin/python $(PYTEST)

check: .venv/dev.stamp
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@# The package fetches its own runtime at the first start, which a closed network may forbid.
	@if .venv/bin/pyright --version >/dev/null 2>&1; then .venv/bin/pyright --pythonpath .venv/bin/python; \
	else echo "pyright cannot start here (it has to fetch its runtime): skipped"; fi

docs: .venv/docs.stamp
	@.venv/bin/python -m website

demo: .venv/demo.stamp
	@.venv/bin/python -m examples.demo

bench: .venv/test.stamp .venv/bench.stamp
	@.venv/bin/python -m pytest -m benchmark -s tests/benchmarks

soak: .venv/test.stamp
	@.venv/bin/python -m pytest -m soak -s
	@.venv/bin/cacheaside check --all --seconds 60

reliability: .venv/test.stamp
	@.venv/bin/cacheaside check --all --seconds 60 --into docs/reliability.md

clean:
	rm -rf .venv $(VERSIONS:%=.env-%) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip before 25.1 knows no --group. A stamp older than pyproject.toml is made again.
INSTALL = echo "Installing the group $(basename $(@F)) into $(@D)"; $(@D)/bin/python -m pip install --quiet --disable-pip-version-check -e . --group $(basename $(@F))

.venv/%.stamp: pyproject.toml | .venv/bin/python
	@$(INSTALL)
	@touch $@

.env-%/test.stamp: pyproject.toml | .env-%/bin/python
	@$(INSTALL)
	@touch $@

.venv/bin/python:
	$(call create,$(PYTHON),.venv)

.env-%/bin/python:
	$(call create,python$*,.env-$*)

# The version is asked for by running it: a python3 on PATH may be a shim that leads nowhere.
define create
	@$(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "cacheaside needs Python 3.11 or newer, and $(1) is $$($(1) --version 2>&1 | head -n 1)."; \
		echo "Name another one: make test PYTHON=python3.12"; exit 1; }
	@$(1) -m venv $(2) || { rm -rf $(2); \
		echo "$(1) cannot make a virtual environment (on Debian: apt-get install python3-venv)."; exit 1; }
	@$(2)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
endef

.SECONDARY:
