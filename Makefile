# make demo   a first run: three UAVs learn to serve twenty users (about three minutes after the downloads)
# make test   the tests
# make lint   style, format, types
# make wheel  the wheel, into dist/
# make schema the JSON Schema of scenarios, after a settings model has changed
#
# Tests run in two processes; PYTEST_FLAGS='-n 4 --dist loadfile' (or any flags of pytest's) says otherwise.
# Everything is installed into $(VENV), once; say VENV=path to use an environment of your own, PYTHON=python3.12 to
# choose the interpreter that makes it, and PIP_FLAGS for pip, for example another index for torch's CPU build:
#   make demo PIP_FLAGS='--extra-index-url URL'

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?= -n 2 --dist loadfile
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
INSTALLED = $(VENV)/.marl-tr-installed

.PHONY: demo test lint wheel schema
.DEFAULT_GOAL := test

demo: $(INSTALLED)
	$(BIN)/marl-tr run uav_quick

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	sh .ci/types $(BIN)/python

# build/ goes first: setuptools would pack deleted modules that are still lying there. marl_tr.egg-info goes last: in
# the current folder it is found before the installed metadata, and would hide entry points added later.
wheel: $(INSTALLED)
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build marl_tr.egg-info

schema: $(INSTALLED)
	$(BIN)/marl-tr schema > scenarios/schema.json.new
	mv scenarios/schema.json.new scenarios/schema.json

# torch goes first and pinned: left to the resolver, another package's range may fetch it twice.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[dev]'
	rm -rf marl_tr.egg-info
	touch $@
