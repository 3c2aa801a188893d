# make demo    masked clips, the same unmasked, and compare.png in demo/, from nothing
# make test    everything that must pass: lint, the wheel in an empty environment, the tests
.DEFAULT_GOAL := help
.PHONY: help venv demo test lint wheel clean

VENV := .venv
BIN := $(VENV)/bin
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# A name on the PATH may be a shim without a Python behind it, so each is tried.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,\
	$(shell $(name) -c '$(USABLE)' >/dev/null 2>&1 && echo $(name))))

help:
	@sed -n 's/^# make/make/p' Makefile

venv: $(VENV)/dev.stamp

$(BIN)/python:
	$(if $(PYTHON),,$(error Python 3.11, 3.12 or 3.13 with venv is needed; name it with PYTHON=/path/to/python3.12))
	$(PYTHON) -m venv $(VENV)

# The demo needs no PyTorch, so it does not wait for it.
$(VENV)/demo.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp
	$(BIN)/python -m unmask.train.demo demo

test: lint wheel
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(VENV)/dev.stamp
	PYTHON=$(BIN)/python bash .ci/wheel

clean:
	rm -rf build dist demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
