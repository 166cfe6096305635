# Every target makes the virtual environment it needs, by itself, once.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: install demo app test lint bench

install: .venv/.core

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ctplab needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.core: pyproject.toml requirements.lock | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

.venv/.dev: .venv/.core
	$(INSTALL) --editable '.[dev]'
	touch $@

demo: .venv/.core
	$(BIN)/ctplab demo

.venv/.app: .venv/.core
	$(INSTALL) --editable '.[app]'
	touch $@

app: .venv/.app
	$(BIN)/python -m app

bench: .venv/.core
	$(BIN)/python benchmarks/learn.py

test: .venv/.dev
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
