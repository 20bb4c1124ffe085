# The command menu. `make quickstart` and `make test` need only Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test lint docs bench clean

quickstart: .venv/installed  ## align a tiny model on this machine's CPU, in about two minutes
	$(BIN)/python examples/quickstart/run.py

test: .venv/installed  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/installed  ## format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p truing $(foreach plugin,$(wildcard plugins/*),-p truing_$(subst -,_,$(notdir $(plugin))))

docs: .venv/installed  ## HTML pages in docs/_build/html
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html

bench: .venv/installed  ## the measured figures
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks

.venv/installed: pyproject.toml requirements-dev.txt constraints.txt $(wildcard plugins/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements-dev.txt -c constraints.txt
	touch $@

clean:
	rm -rf .venv docs/_build output
