# Every target sets up what it needs in .venv; none needs another one to have run before.
# PYTHON picks the interpreter (3.11 to 3.13). TORCH_INDEX, if set, is the package index that torch alone is taken from.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One thread a worker: pytest runs a worker a core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-shuffled test-browser test-latest test-oldest coverage check format eval bench chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.runtime ## ask the embedded model about the bundled picture
	$(BIN)/tilewise generate

test: .venv/.dev ## run every test that needs no GPU, browser or system package
	$(PYTEST)

test-all: .venv/.dev ## run the slow tests too, and the GPU ones where there is a GPU
	$(PYTEST) -m "not browser"

SEEDS := 1 2 3
test-shuffled: .venv/.dev ## run what `make test` runs in a random order, once a seed of SEEDS
	for seed in $(SEEDS); do $(PYTEST) -q --shuffle $$seed || exit; done

test-latest: ## run the tests with the newest allowed version of every dependency, in .venv-latest
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	.venv-latest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager "$(TORCH)" --editable ".[dev]"
	.venv-latest/bin/python -m pip freeze --exclude-editable
	OMP_NUM_THREADS=1 .venv-latest/bin/python -m pytest -q -n auto

test-oldest: .venv/.dev ## run the tests with the oldest allowed version of every dependency, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m tests.lower_bounds > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable ".[dev]"
	.venv-oldest/bin/python -m pip freeze --exclude-editable
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q -n auto

coverage: .venv/.dev ## run `make test` under coverage.py, processes included, and print lines and branches by room
	$(PIP) "coverage>=7.10"
	rm -rf .coverage-data && mkdir .coverage-data
	OMP_NUM_THREADS=1 COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(BIN)/python -m coverage run -m pytest -q -n auto
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --sort=cover | tail -n 40

test-browser: .venv/.dev ## play the chat page in a real browser; needs chromium on the PATH
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/browser

check: .venv/.dev ## format, lint, types, and the house rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/meta

format: .venv/.dev ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

MODEL ?= src/tilewise/demo/model
NUMBER ?= 1000
eval: .venv/.runtime ## score MODEL on NUMBER held-out questions a task; OPTIONS adds flags of training.evaluate
	PYTHONPATH=. $(BIN)/python -m training.evaluate $(MODEL) --number $(NUMBER) $(OPTIONS)

bench: .venv/.runtime ## time MODEL if it is given and there is a GPU, else the embedded model; OPTIONS as serving.py's
	@if [ "$(origin MODEL)" != file ] && $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then set -x; $(BIN)/python benchmarks/serving.py $(MODEL) $(OPTIONS); \
	else set -x; $(BIN)/python benchmarks/demo.py; fi

chaos: .venv/.dev ## attack a server and a page of this machine, and print what others suffered beside what is asked
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/chaos.py $(OPTIONS)

clean: ## remove the environment and the caches
	rm -rf .venv .venv-latest .venv-oldest .coverage-data .hypothesis .pytest_cache .ruff_cache

.venv/.torch: Makefile
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Tilewise needs Python 3.11 to 3.13; set PYTHON=/path/to/one.")'
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	touch $@

.venv/.runtime: .venv/.torch pyproject.toml
	$(PIP) --editable .
	touch $@

.venv/.dev: .venv/.torch pyproject.toml
	$(PIP) --editable ".[dev]"
	touch $@ .venv/.runtime
