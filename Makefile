# POSIX sh and GNU make 3.81. Paths are relative, so the folder's own path may have spaces.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGES := agent policies store replay
DEMO_FLAGS ?= --benchmark imagesegments --policies uniform,track-and-stop --estimators ipw,obs-only,doubly-robust,hierarchical --confounding 1 --alpha 0.5 --world reward=bounded --exp-rate 0.5 --budget 5000 --epsilon 0.05 --seeds 5 --out runs/demo --force
# Half as many workers again as cores: some tests wait for a daemon while others compute.
TEST_WORKERS := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) * 3 / 2)))
TEST_FLAGS ?= -n $(TEST_WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test lint format bench bench-service bench-lanes bench-cluster chaos doors findings studies torture reference wheel-check constraints clean

help: ## Show these targets
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)$$/  \1: \2/p' Makefile

demo: .venv/.stamp-run ## Compare two policies and four estimators on a bundled benchmark
	$(BIN)/equipoise replay $(DEMO_FLAGS)

# One BLAS thread per test worker: the workers already fill the cores. Bytecode is kept: the workers,
# and the many processes that tests start, would compile everything anew.
# Stores of tests lie in memory where there are two gigabytes of it: a quarter of the time is waiting for disks.
test: .venv/.stamp-dev ## Run every test
	@root=; if test "$$(df -Pk /dev/shm 2>/dev/null | awk 'END {print int($$4 / 1048576)}')" -ge 2; then \
	  root=$$(mktemp -d /dev/shm/equipoise-tests-XXXXXX); trap 'rm -rf "$$root"' EXIT; \
	  export PYTEST_DEBUG_TEMPROOT="$$root"; fi; \
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_FLAGS)

lint: .venv/.stamp-dev .typing/equipoise ## Check formatting, lint, types and import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m mypy $(PACKAGES:%=-p equipoise.%)
	PYTHONPATH=.typing $(BIN)/lint-imports

format: .venv/.stamp-dev ## Rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.stamp-bench ## Measure speed against the peers
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/performance/run.py $(BENCH_FLAGS)

bench-service: .venv/.stamp-run ## Load the daemon on schedule, beside a bare server
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/performance/service_bench.py $(BENCH_FLAGS)

bench-cluster: .venv/.stamp-cluster ## A sweep on Dask and on Ray, beside local processes
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/performance/cluster_bench.py
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/performance/cluster_bench.py --ray

bench-lanes: .venv/.stamp-dev ## Rates of one process, one worker and two, and what a row costs
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/performance/lanes_bench.py $(BENCH_FLAGS)

# Several minutes. PostgreSQL's server has to be installed (Debian: apt install postgresql).
chaos: .venv/.stamp-dev ## Kill deciders, authorities and their database at random: make chaos CHAOS_FLAGS="--seed 2"
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/service/lanes_chaos.py --kills 200 $(CHAOS_FLAGS)

# Installs the peers into environments of their own, in build/doors. Some minutes the first time.
doors: .venv/.stamp-dev ## Drive every door by the real product: make doors DOORS="litellm ofrep"
	$(BIN)/python tests/doors/run.py $(DOORS)

# About an hour and a half on two cores; what has finished is not run again.
findings: .venv/.stamp-run ## Run every experiment on the LLM benchmarks: make findings DATA=PATH
	@test -n "$(DATA)" || { echo "say where the benchmarks are: make findings DATA=PATH" >&2; exit 2; }
	mkdir -p docs/findings
	set -e; for benchmark in swebench alpacaeval frank; do \
	  for experiment in alignment grid misspecified exp-budget simulator families allocation \
	      gates; do \
	    out=runs/findings/$$benchmark-$$experiment; \
	    test -d $$out || $(BIN)/equipoise replay --experiment $$experiment \
	      --benchmark $$benchmark:"$(DATA)/$$benchmark" --out $$out; \
	    cp $$out/findings.md docs/findings/$$benchmark-$$experiment.md; \
	  done; \
	done

# Over an hour on two cores; the coverage study goes on where it was interrupted.
studies: .venv/.stamp-dev ## Measure the promises again: make studies DATA=PATH
	@test -n "$(DATA)" || { echo "say where the benchmarks are: make studies DATA=PATH" >&2; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python tests/statistical/coverage_study.py --out docs/coverage.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/statistical/decided_study.py --out docs/decided.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/statistical/crossing_study.py --out docs/crossing.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/statistical/missing_study.py --out docs/missing.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/statistical/lanes_study.py --out docs/lanes.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/statistical/monitors_study.py --out docs/checks.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/statistical/forecast_study.py --out docs/forecasts.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/statistical/regression_study.py --out docs/regression.md \
	  swebench:"$(DATA)/swebench" alpacaeval:"$(DATA)/alpacaeval" frank:"$(DATA)/frank"

# Root (disks of its own) and a C compiler (a clock of its own) make it whole; without them it says so.
torture: .venv/.stamp-torture ## Fuzz and break a daemon for an hour: make torture TORTURE_FLAGS="--minutes 5"
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/service/torture.py \
	  --out docs/reliability.md $(TORTURE_FLAGS)

reference: .venv/.stamp-run ## Write docs/reference from the declarations in the code
	$(BIN)/equipoise reference --out docs/reference

wheel-check: .venv/.stamp-dev ## Build the wheel and try it in a fresh environment
	$(BIN)/python tests/packaging/wheel_check.py

constraints: .venv/.stamp-venv ## Resolve the newest versions anew (use PYTHON=python3.11, the oldest supported)
	rm -rf build/constraints
	$(BIN)/python -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet '.[dev,bench,torture,dask,ray]'
	build/constraints/bin/python -m pip freeze | grep == > build/constraints.txt
	mv build/constraints.txt constraints.txt
	rm -rf build

clean: ## Remove the environment, caches and build products (results in runs/ stay)
	rm -rf .venv .typing build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. Each stamp records one set of installed extras and goes stale with these files:
INPUTS := pyproject.toml setup.py constraints.txt

.venv/.stamp-venv:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Equipoise needs Python 3.11 or newer, and '$(PYTHON)' is not one." >&2; \
	  echo "Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot create environments; on Debian or Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	"$(PYTHON)" -m venv .venv
	touch $@

.venv/.stamp-run: .venv/.stamp-venv $(INPUTS)
	@echo "Installing Equipoise into .venv; this takes about a minute."
	$(PIP_INSTALL) -e .
	touch $@

.venv/.stamp-dev: .venv/.stamp-venv $(INPUTS)
	@echo "Installing Equipoise and its development tools into .venv; this takes about a minute."
	$(PIP_INSTALL) -e '.[dev]'
	touch .venv/.stamp-run $@

.venv/.stamp-bench: .venv/.stamp-venv $(INPUTS)
	@echo "Installing Equipoise and the peers it is measured against into .venv."
	$(PIP_INSTALL) -e '.[bench]'
	touch .venv/.stamp-run $@

.venv/.stamp-cluster: .venv/.stamp-venv $(INPUTS)
	@echo "Installing Equipoise, its development tools, Dask and Ray into .venv."
	$(PIP_INSTALL) -e '.[dev,dask,ray]'
	touch .venv/.stamp-run .venv/.stamp-dev $@

.venv/.stamp-torture: .venv/.stamp-venv $(INPUTS)
	@echo "Installing Equipoise, its development tools and schemathesis into .venv."
	$(PIP_INSTALL) -e '.[dev,torture]'
	touch .venv/.stamp-run .venv/.stamp-dev $@

# Type checkers cannot follow an editable install; through this link they see equipoise/agent etc.
.typing/equipoise:
	mkdir -p .typing
	ln -s .. $@
