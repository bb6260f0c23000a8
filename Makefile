# Needs Python 3.11 or newer and git, nothing else. Every target may be run again at any time.
#   make study   set everything up in .venv and run the main job: Sobol over digits networks
#   make test    set everything up in .venv and run lint, types, layers and all tests

PYTHON ?= python3
BIN = .venv/bin
# One thread per process: the tests run in parallel, and small networks are fastest that way.
export OMP_NUM_THREADS = 1

.PHONY: study test check lint types layers tests clean

study: .venv/ready
	@echo "== the main job: a Sobol study of real networks, saved to SQLite =="
	$(BIN)/python -m studies.digits

test: check tests

check: lint types layers

lint: .venv/ready
	@echo "== lint =="
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	@echo "== types =="
	$(BIN)/mypy

layers: .venv/ready
	@echo "== layers =="
	$(BIN)/lint-imports

tests: .venv/ready
	@echo "== tests =="
	$(BIN)/python -m pytest -n $${TEST_WORKERS:-auto} --dist worksteal

.venv/ready: pyproject.toml constraints.txt
	@echo "== setting up .venv (a minute or two the first time) =="
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev \
		--editable '.[studies,postgresql,mysql,grpc]'
	@touch $@

clean:
	rm -rf .venv
