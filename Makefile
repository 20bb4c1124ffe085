# The command menu. `make quickstart` and `make test` need only Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
BENCH_ENV ?= $(HOME)/.cache/truing/bench
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart test test-gpu test-faults rollout-programs test-rollouts lint docs bench clean

quickstart: .venv/installed  ## align a tiny model on this machine's CPU, in about two minutes
	$(BIN)/python examples/quickstart/run.py

test: .venv/installed  ## the whole test suite, on the CPU, where results are the same to the last bit
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-gpu: .venv/installed  ## what needs a CUDA device
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/gpu

test-faults: .venv/installed  ## kills, full disks, damage and signals by the thousand; half an hour on two cores
	TRUING_FAULTS=full CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -n 3 --dist worksteal

rollout-programs: .venv/installed  ## vLLM for CPUs and OpenEnv, in environments of their own outside the repository
	$(BIN)/python -m tests.rollouts.vllm_program
	$(BIN)/python -m tests.rollouts.openenv_program

test-rollouts: rollout-programs  ## rollouts from the real programs
	TRUING_ROLLOUTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/rollouts -m rollouts

lint: .venv/installed  ## format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p truing $(foreach plugin,$(wildcard plugins/*),-p truing_$(subst -,_,$(notdir $(plugin))))

docs: .venv/installed  ## HTML pages in docs/_build/html
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build/html

bench: .venv/installed $(BENCH_ENV)/installed  ## the measured figures; TRL in an environment outside the repository
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks
	$(BENCH_ENV)/bin/python -m pytest tests/parity
	$(BENCH_ENV)/bin/python -m tests.benchmarks.against_trl --memory

.venv/installed: pyproject.toml requirements-dev.txt constraints.txt $(wildcard plugins/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements-dev.txt -c constraints.txt
	touch $@

$(BENCH_ENV)/installed: pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	test -x $(BENCH_ENV)/bin/python || $(PYTHON) -m venv $(BENCH_ENV)
	$(BENCH_ENV)/bin/python -m pip install -q trl==1.16.0 pytest pytest-timeout -e . $(foreach plugin,$(wildcard plugins/*),-e ./$(plugin)) -c constraints.txt
	touch $@

clean:
	rm -rf .venv docs/_build output
