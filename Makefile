# Two commands: `make demo` runs the main job on embedded real data, `make test` passes the tests.
# Both make the environment in .venv once; a second call installs nothing.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := pyproject.toml constraints.txt

.PHONY: help setup demo test check gpu clean

help:
	@echo "make demo    find, retrain and measure a ticket on the embedded digits graph"
	@echo "make test    run the tests"
	@echo "make check   lint, types, tests"
	@echo "make gpu     what one CUDA device does in eight minutes, beside what it could do at most"
	@echo "make setup   the environment alone, in .venv"
	@echo "make clean   remove the environment"

setup: .venv/.run

.venv/.run: $(SOURCES)
	@echo "making the environment in .venv (once; this takes a minute or two)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; use make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) -e .
	@touch $@

.venv/.test: .venv/.run
	@$(PIP) -e '.[test]'
	@touch $@

.venv/.dev: .venv/.test
	@$(PIP) -e '.[dev]'
	@touch $@

demo: .venv/.run
	@$(BIN)/gebt run --dataset digits

# One worker a core, one thread each: small tensors gain nothing from more.
test: .venv/.test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: .venv/.dev test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# On a machine without a device it says how to run it on another.
gpu: .venv/.test
	@echo "python benchmarks/gpu.py --budget 470 --json gpu.json"
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(BIN)/python benchmarks/gpu.py --budget 470 --json gpu.json; \
	else echo "no CUDA device here: run the line above where there is one, or rehearse it with --pretend"; fi

clean:
	rm -rf .venv
