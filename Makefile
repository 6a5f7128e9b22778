# make demo    install, then the whole flow on a phantom: tar → model → Dice → registry
# make test    install, then the test suite
# make check   lint, types, import contracts, tests
# make fmt     format and fix what can be fixed
# make clean   remove what the above made, but not .venv

PYTHON ?= python3
CONSTRAINTS ?= constraints-cpu.txt
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint check fmt constraints clean

demo: $(INSTALLED)
	$(BIN)/liverseg phantom demo/phantom.tar
	$(BIN)/liverseg run demo/phantom.tar --config phantom --store demo/store

test: $(INSTALLED)
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

fmt: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

clean:
	rm -rf demo build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
