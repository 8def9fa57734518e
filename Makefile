# make demo   the whole method on real data, on a CPU, in about a quarter of an hour -> build/demo/report.md
# make test   lint and tests, offline
# make demo-long   the same as the demo with more iterations

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TINY := build/tiny
DEMO := build/demo
.SHELLFLAGS := -eu -o pipefail -c
SHELL := /bin/bash

# Nothing is fetched but packages: what would ask the Hub must fail at once instead.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo demo-long test lint tiny clean

$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt -c constraints.txt
	touch $@

tiny: $(VENV)/.installed
	$(BIN)/python -m examples.tiny.build --output_dir $(TINY)

demo: tiny
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m examples.demo.run --tiny_dir $(TINY) --output_dir $(DEMO)

demo-long: tiny
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m examples.demo.run --tiny_dir $(TINY) --output_dir build/demo-long --long

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest -n 2

clean:
	rm -rf build
