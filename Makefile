# Everything sets itself up: `make demo` and `make test` need Python 3.11+ and make, nothing else.
#
#   make demo TORCH="torch==2.13.0 --index-url <the CPU index named on pytorch.org>"   another torch build
#   make demo ARGS="--iterations 4"                                                    another demo

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
ARGS   ?=
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PORT   ?= 3000

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test format lint types pytest bench house lock clean

help:
	@echo "make demo    the whole loop on this machine; writes report.html"
	@echo "make ui      Dagster's UI, with every run and check of the demo"
	@echo "make test    format, lint, types and tests: what CI runs"
	@echo "make bench   benchmarks of reading, judging, the policy and the gateway"
	@echo "make house   the order of the packages, with their imports"
	@echo "make lock    write requirements.lock anew from pyproject.toml (without torch)"
	@echo "make clean   remove what all of these made, with the data under .babylon"

setup: $(STAMP)

# torch comes first and by pip without its dependencies' CUDA packages; the lock has everything else.
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "babylon_rl needs Python 3.11 or newer, found %d.%d; try: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing (about a minute; quick the next time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(TORCH) uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "torch does not import: this index gave a CUDA build. Give the CPU index that pytorch.org names:  make $(MAKECMDGOALS) TORCH=\"torch==2.13.0 --index-url ...\"" >&2; exit 1; }
	@touch $@

demo: $(STAMP)
	@$(BIN)/babylon-rl demo $(ARGS)

ui: $(STAMP)
	@$(BIN)/babylon-rl up --port $(PORT)

test: format lint types pytest

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# Two at a time: much of what they do is waiting for processes that are killed, started and found again.
pytest: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

bench: $(STAMP)
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/judge.py
	$(BIN)/python benchmarks/policy.py
	$(BIN)/python benchmarks/gateway_load.py

house: $(STAMP)
	@$(BIN)/python -m babylon_rl_tests.house

lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-header --no-annotate --quiet --upgrade -o requirements.lock
	@grep -vE '^(torch|triton)==' requirements.lock > requirements.lock.new && mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) .babylon build *.egg-info report.html report.json
