# Two commands do everything on a fresh machine: `make train` and `make test`. Both set up .venv first, once.
PYTHON ?= python3.11
SEED ?= 0
AUDIT := build/audit
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCKS := deploy/requirements-cpu.txt deploy/requirements-job-server.txt
QUICKSTART := runs/quickstart
PROTOS := $(wildcard services/protos/*/v*/*.proto)

.PHONY: setup train test lint clean bench chaos audit lock protos tree

setup: $(READY)

$(READY): $(LOCKS) pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11)' 2>/dev/null || \
	  { echo "Trireme needs Python 3.11; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --requirement deploy/requirements-cpu.txt
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/job-server \
	  --requirement deploy/requirements-job-server.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(READY)

train: setup
	rm -rf $(QUICKSTART)
	$(BIN)/python examples/quickstart/prepare.py $(QUICKSTART) --seed $(SEED)
	$(BIN)/trireme sft examples/quickstart/sft.yaml --run.seed $(SEED)
	$(BIN)/trireme train examples/quickstart/ppo.yaml --run.seed $(SEED)

# Two processes: one begins with the runs that are disturbed, and each other file goes where there is room (tests/conftest.py).
# One thread for each: threads that wait for each other on cores that are taken make a learner's step ten times as long.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder --durations 25 --durations-min 20

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks

# Ten minutes of random faults on one run, which must recover from each and lose nothing.
chaos: setup
	$(BIN)/python -m tests.chaos --seed $(SEED)

# Known advisories against the pinned versions; whatever could not be looked up fails it too. Needs PyPI's own API.
audit:
	test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) && $(AUDIT)/bin/pip install --quiet pip-audit==2.10.1; }
	$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps $(LOCKS:%=--requirement %) \
	  $$(sed -n 's/^\([A-Z][^ ]*\) .*/--ignore-vuln \1/p' deploy/accepted-advisories.txt)

clean:
	rm -rf $(VENV) runs build *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# For maintainers: regenerate what is committed.
protos: setup
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

tree: setup
	$(BIN)/python -m tests.readme_tree

lock: setup
	sed -i '/^[^#]/d' deploy/requirements-cpu.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' >> deploy/requirements-cpu.txt
