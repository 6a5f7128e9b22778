# make demo    install, then the whole flow on a phantom: tar → model → Dice → registry
# make test    install, then the tests that need no cluster, image or page of docs
# make test-all    install, then every test
# make check   lint, types, import contracts, every test
# make up      the services of a cluster as processes on loopback: Postgres, S3, MLflow, Prefect, Dask and workers
# make down    stop exactly those
# make constraints    pin every dependency anew
# make fmt     format and fix what can be fixed
# make clean   remove what the above made, but not .venv

PYTHON ?= python3
CONSTRAINTS ?= constraints-cpu.txt
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-all lint check up down fmt constraints clean

demo: $(INSTALLED)
	$(BIN)/liverseg phantom demo/phantom.tar --cases 72
	$(BIN)/liverseg run demo/phantom.tar --config phantom --store demo/store

# Three processes on two cores: tests wait for others' processes half of their time.
TESTS = $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(TESTS) -m 'not containers and not whole'

test-all: $(INSTALLED)
	$(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test-all

up: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -r infra/processes/requirements.txt
	infra/processes/up

down:
	infra/processes/down

fmt: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

PINNED = import json; found = [part["metadata"] for part in json.load(open("build/resolve.json"))["install"]]; \
	names = {part["name"].lower().replace("_", "-").replace(".", "-"): part["version"].split("+")[0] for part in found}; \
	print(*sorted(f"{name}=={version}" for name, version in names.items() if name != "liverseg"), sep="\n")

# Resolved from metadata alone; no configured local build may find its way in.
constraints:
	$(PYTHON) -m venv build/pip
	build/pip/bin/pip install --quiet 'pip>=26'
	PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= build/pip/bin/pip install --quiet --dry-run --ignore-installed \
		--use-feature=fast-deps --report build/resolve.json '.[dev,gpu]'
	echo '# Exact versions, Python 3.11, with a CUDA GPU. Written by make constraints.' > constraints-gpu.txt
	$(PYTHON) -c '$(PINNED)' >> constraints-gpu.txt
	echo '# Exact versions, Python 3.11, without a GPU. Written by make constraints.' > constraints-cpu.txt
	grep -vE '^(#|nvidia-|cuda-|triton=)' constraints-gpu.txt >> constraints-cpu.txt

clean:
	rm -rf demo build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
