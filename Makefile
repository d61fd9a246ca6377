# make demo        from nothing to sampled grids in MLflow, on scikit-learn's digits
# make test        lint, types, contracts and tests: what CI runs
# make test-slow   Ray Train killed, stopped, resumed, and at several world sizes, whole environments: 17 minutes
# make bench       every benchmark, short, one after the other: a quarter of an hour; the page is bench.md
# make lint        what a commit hook runs (.pre-commit-config.yaml): style, types, import contracts
# make clean       remove the environment and the demo's outputs

PYTHON ?= python3.11
VENV ?= .venv
# First and by itself, so that pip takes the build that is asked for; with a GPU, name your own, e.g. TORCH=torch.
TORCH ?= torch==2.13.0
DEMO ?= demo-run
ifneq ($(words $(VENV)),1)
$(error VENV is "$(VENV)", and make takes no path with a space; the folder above may have one)
endif
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow bench lint clean
.DELETE_ON_ERROR:

$(VENV)/.base: constraints.txt
	@echo "make: a virtual environment in $(VENV), then torch"
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/.demo: $(VENV)/.base pyproject.toml
	@echo "make: installing the project and what it needs"
	$(PIP) -e ".[ray,demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.base pyproject.toml
	@echo "make: installing the project, its checkers and its tests' needs"
	$(PIP) -e ".[ray,demo,dev,test]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m jobs.demo_digits "$(DEMO)/digits"
	$(BIN)/python jobs/pipeline.py --input "$(DEMO)/digits" --root "$(DEMO)" --recipe configs/digits.yaml

test: lint
	@echo "make: left out are the tests marked slow (kills and world sizes under Ray Train): make test-slow"
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow --timeout 600

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run_all --page bench.md

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf $(VENV) "$(DEMO)" *.egg-info
