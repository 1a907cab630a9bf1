PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Three for two cores: half of the time they wait for processes that start.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-all lint docs bench release

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/gpm-tune run search_spaces/quickstart.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install
	$(PYTEST) -m "not slow"

test-all: install
	$(PYTEST)

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # into build/site, for any file server

bench: install
	$(BIN)/python -m benchmarks

release: install
	.ci/release
