# make demo   the whole method on real data, on a CPU, in about a quarter of an hour -> build/demo/report.md
# make test   lint, documents and all tests, offline
# make test-fast   the tests of the inner loop, in under a minute
# make lint   style, spelling and types
# make docs-check   every command, flag, link, path and import in the documents exists
# make requirements   requirements.txt, from pyproject.toml
# make demo-long   the same as the demo with more iterations
# make demo-sdxl   the same in SDXL's layout, with train_add_sdxl.py -> build/demo-sdxl/report.md
# make demo-lora   the same as demo-sdxl, training an adapter alone -> build/demo-lora/report.md
# make world  train the showcase's networks, in hours, from the stages in examples/showcase/stages -> build/world/packed
# make test-conformance   diffusers' own pipeline tests against ours; needs network

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
# Import-time remarks of the libraries about packages that nothing here uses.
export TRANSFORMERS_VERBOSITY := error

# The recipe of the demo; `demo-long` only trains longer. Every flag is an ordinary one of train_add.py.
STEPS := 1200
# accelerate gives a process one thread unless told otherwise.
THREADS := $(shell nproc 2>/dev/null || echo 2)
WORLD_FLAGS = --pretrained_teacher_model $(TINY)/teacher --train_data_dir $(TINY)/data/train --resolution 32 \
  --discriminator_feature_model $(TINY)/feature_network --discriminator_text_model $(TINY)/clip \
  --discriminator_image_model $(TINY)/feature_network
# One recipe for the demo, the ablations and the comparison.
RECIPE_FLAGS = $(shell grep -v '^\#' examples/demo/recipe.txt)
RUN_FLAGS = --max_train_steps $(STEPS) --checkpointing_steps 200 --checkpoints_total_limit 1 \
  --resume_from_checkpoint latest --validation_prompts "a handwritten zero" "a bold handwritten three" \
  "a thin handwritten seven leaning right" --validation_steps 200 --seed 0
SCRIPT := train_add.py
LAYOUT := sd
# A demo's own flags, after the recipe's.
MORE_FLAGS :=
BUILD_COMMAND = python -m examples.tiny.build --layout $(LAYOUT) --output_dir $(TINY)
TRAIN_COMMAND = accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
  --num_cpu_threads_per_process $(THREADS) \
  $(SCRIPT) $(WORLD_FLAGS) $(RECIPE_FLAGS) $(RUN_FLAGS) $(MORE_FLAGS) --output_dir $(DEMO)/student
REPORT_COMMAND = python -m examples.demo.report --tiny_dir $(TINY) --student $(DEMO)/student --output_dir $(DEMO) \
  --commands '$(BUILD_COMMAND)' '$(TRAIN_COMMAND)'
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: demo demo-long demo-sdxl demo-lora world test test-fast lint docs-check requirements
.PHONY: tiny tiny-sdxl test-conformance clean

# The project itself is installed as well, as a link to this folder: its commands are in .venv/bin.
$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]' -c constraints.txt
	touch $@

tiny: $(VENV)/.installed
	$(IN_VENV) $(BUILD_COMMAND)

demo: tiny
	$(IN_VENV) $(TRAIN_COMMAND)
	$(IN_VENV) $(REPORT_COMMAND)

demo-long: STEPS := 2500
demo-long: DEMO := build/demo-long
demo-long: demo

SDXL := tiny-sdxl demo-sdxl demo-lora
$(SDXL): SCRIPT := train_add_sdxl.py
$(SDXL): LAYOUT := sdxl
$(SDXL): TINY := build/tiny-sdxl

tiny-sdxl: tiny

demo-sdxl: DEMO := build/demo-sdxl
demo-sdxl: demo

# An adapter starts at nothing and its rate is not that of whole weights.
demo-lora: MORE_FLAGS := --use_lora --lora_rank 16 --learning_rate 5e-4 --fuse_lora
demo-lora: DEMO := build/demo-lora
demo-lora: demo

WORLD := build/world
world: $(VENV)/.installed
	$(IN_VENV) python -m examples.showcase.write --output_dir $(WORLD)/pictures
	$(IN_VENV) python -m examples.showcase.stages restore --networks_dir $(WORLD)/networks
	$(IN_VENV) python -m examples.tiny.build --train_data_dir $(WORLD)/pictures --resolution 64 \
	  --output_dir $(WORLD)/networks --accept_older_code
	$(IN_VENV) python -m examples.showcase.measure --networks_dir $(WORLD)/networks \
	  --pictures_dir $(WORLD)/pictures --output_dir $(WORLD)/measured
	$(IN_VENV) python -m examples.showcase.pack --networks_dir $(WORLD)/networks --output_dir $(WORLD)/packed

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright --pythonpath $(BIN)/python

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# tests/docs is among the tests.
test: lint
	$(PYTEST) -n 2 --dist worksteal

# Which tests are slow is in tests/slow.py.
test-fast: $(VENV)/.installed
	$(PYTEST) -n 2 --dist worksteal -m "not slow"

docs-check: $(VENV)/.installed
	$(PYTEST) tests/docs

requirements: $(VENV)/.installed
	$(BIN)/python -m tests.packaging.requirements

# diffusers' own pipeline tests against ours and, as a control, the stock pipelines; fetched where there is network.
DIFFUSERS_CHECKOUT ?= build/diffusers
DIFFUSERS_TAG := v0.42.1
test-conformance: $(VENV)/.installed
	test -d $(DIFFUSERS_CHECKOUT) || git clone --quiet --depth 1 --branch $(DIFFUSERS_TAG) \
	  https://github.com/huggingface/diffusers $(DIFFUSERS_CHECKOUT) || echo "diffusers' tests could not be fetched"
	$(BIN)/python -m pip install --quiet parameterized requests-mock -c constraints.txt
	OMP_NUM_THREADS=1 DIFFUSERS_CHECKOUT=$(DIFFUSERS_CHECKOUT) $(BIN)/python -m pytest tests/conformance -rs

clean:
	rm -rf build
