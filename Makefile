# hypertrail: from a fresh clone to a first result. `make` alone says what there is.
#
#   PYTHON=python3.12 make demo     builds .venv with another interpreter (3.11, 3.12 or 3.13)
#   make demo ARGS="--seed 1"       hands further arguments to the job

PYTHON ?= python3
UV ?= uv
ARGS ?=

# The tests start many processes: where no bytecode is kept, each compiles all that it imports anew, for a second or two.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.installed-bench
LINT := $(BIN)/python -m ruff check --output-format concise . && $(BIN)/python -m ruff format --check .
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
# XLA without its costly passes compiles in a third of the time, to the same numbers but for rounding. A test that asks for
# bits, for the number of programs or for what they do is marked `optimised`, and runs with XLA as users have it.
FAST_XLA := XLA_FLAGS="--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
  --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 $$XLA_FLAGS"
BENCHMARKS := $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))

.DEFAULT_GOAL := help
.PHONY: help demo check test test-slow bench gpu lock clean
.DELETE_ON_ERROR:

help:
	@echo "make demo       build .venv if needed, then tune per-parameter L2 on the handwritten digits (no network needed)"
	@echo "make check      in two minutes: ruff, mypy, and the tests that find most (tests/README.md says which)"
	@echo "make test       ruff, and all tests but the slow ones"
	@echo "make test-slow  the tests that take minutes"
	@echo "make bench      install the bench extra (CPU torch, torchopt) and write the tables in benchmarks/results/"
	@echo "make gpu        all that a GPU can answer, in at most 8 minutes; writes a table in benchmarks/results/gpu/ (ARGS=--tiny: on a CPU)"
	@echo "make lock       resolve requirements.lock anew from pyproject.toml (needs uv)"
	@echo "make clean      remove .venv and the tools' caches (runs/ stays)"

demo: $(INSTALLED)
	$(BIN)/hypertrail run drmad-digits $(ARGS)

check: $(INSTALLED)
	$(LINT)
	$(BIN)/python -m mypy
	$(FAST_XLA) $(PYTEST) --sketches @tests/check.txt $(ARGS)

# Where ARGS names tests, one of the two may have none of them: pytest then ends with 5.
test: $(INSTALLED)
	$(LINT)
	$(FAST_XLA) $(PYTEST) --sketches -m "not slow and not optimised" $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -m "optimised and not slow" $(ARGS) || [ $$? -eq 5 ]

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(BENCH_INSTALLED)
	@set -e; for one in $(BENCHMARKS); do echo "$$one"; $(BIN)/python $$one $(ARGS); done

# On whatever device the JAX of .venv finds: for a GPU, .venv/bin/pip install 'jax[cuda13]' first. Without .venv: the file says how.
gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu/run.py $(ARGS)

# Everything that is fetched is pinned and hashed, the build back end included; the project itself needs no network.
$(INSTALLED): requirements.lock pyproject.toml
	@echo "installing into $(VENV) (a minute or two, once)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python {v[0]}.{v[1]}, hypertrail needs 3.11 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	@$(PIP) install --no-build-isolation --editable '.[bench]'
	@touch $@

lock:
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv, or make lock UV=<path to uv>"; exit 2; }
	env -u UV_INDEX -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
	  $(UV) --no-config pip compile pyproject.toml --extra test --group build --upgrade \
	  --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
