# make demo   the main job from end to end (embedded broker, real encoder, under two minutes); installs what that needs and no more
# make demo-tuning   a vFM improves while its neighbours are answered in time, under three minutes; draws demo-tuning.png and .html
# make test   all test suites but what takes longer (under 12 minutes on two cores)
# make test-all  what takes longer: chaos, the demo of generated text, other people's client packages, every benchmark in its quick form
# make test-deep  the scheduler's promises, ten thousand random traces each
# make check  ruff, mypy, import-linter
# make bench  the benchmarks, as JSON into benchmarks/results/ (ten minutes each at most)
# make bench-quick  a small version of every benchmark, to see that it works
# make up     a fleet on this machine until Ctrl-C
.PHONY: setup demo demo-tuning test test-all test-deep check bench bench-quick up format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
# Client packages of others pull in half of the registry: they have an environment of their own.
CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.installed
export HF_HUB_OFFLINE ?= 1

# $(1): folder of the environment, $(2): what to install, for pip.
define install
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2)
endef

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(call install,$(VENV),-c constraints.txt -e ".[dev]")
	touch $(DEMO_STAMP) $(STAMP)

$(DEMO_STAMP): pyproject.toml constraints.txt
	$(call install,$(VENV),-c constraints.txt -e ".[demo]")
	touch $(DEMO_STAMP)

$(CLIENTS_STAMP): tests/clients/requirements.txt tests/clients/constraints.txt
	$(call install,$(CLIENTS),-c tests/clients/constraints.txt -r tests/clients/requirements.txt)
	touch $(CLIENTS_STAMP)

demo: $(DEMO_STAMP)
	$(BIN)/fmplex demo

demo-tuning: $(DEMO_STAMP)
	$(BIN)/fmplex demo --tuning --plot demo-tuning

# Runs of pytest side by side, for tests of real processes mostly wait for each other; what all but the first print comes at the end.
# A thread each: those of several runs would keep each other from the processors, spinning.
define side_by_side
@export OMP_NUM_THREADS=1; $(foreach n,2 3,$(if $($(n)),$(BIN)/python -m pytest $($(n)) $(PYTEST_ARGS) > $(VENV)/tests-$(n).log 2>&1 & run_$(n)=$$!;)) \
$(BIN)/python -m pytest $(1) $(PYTEST_ARGS); failed=$$?; \
$(foreach n,2 3,$(if $($(n)),wait $$run_$(n) || failed=1; cat $(VENV)/tests-$(n).log;)) \
test $$failed -eq 0
endef

# Three parts that take about as long: what is in neither of two others is in the third.
UNIT := $(filter-out %/tuning/ %/__pycache__/,$(wildcard tests/unit/*/))
PROTOCOL := tests/contract tests/unit/tuning tests/integration/test_backbones.py $(wildcard tests/integration/test_generation*.py)
test: setup
	$(call side_by_side,tests --ignore=tests/chaos $(addprefix --ignore=,$(UNIT) $(PROTOCOL)),$(UNIT),$(PROTOCOL))

# The benchmarks by themselves: they put their processes ahead of all others.
BENCHMARK_TESTS := tests/integration/test_benchmarks.py
test-all: setup $(CLIENTS_STAMP)
	$(call side_by_side,tests/chaos,-m long --ignore=$(BENCHMARK_TESTS))
	$(MAKE) bench-quick

test-deep: setup
	$(BIN)/python -m pytest tests/unit/scheduling --hypothesis-profile=deep --timeout=0

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every script that has a claim; what soak and storm say is whether something is left or lost, which needs no picture.
BENCHMARKS := $(filter-out soak storm,$(basename $(notdir $(shell grep -lE '^ +main.Benchmark.' benchmarks/*.py))))
bench: setup
	mkdir -p benchmarks/results
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --json > benchmarks/results/$$name.json || exit 1; done

# Two at a time: their quick forms measure nothing that counts.
FIRST := fairness or generation or offline or peers or residency
bench-quick: setup
	$(call side_by_side,-m long $(BENCHMARK_TESTS) -k "$(FIRST)",-m long $(BENCHMARK_TESTS) -k "not ($(FIRST))")

up: setup
	$(BIN)/fmplex up

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info .fmplex
