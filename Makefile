# make demo   the main job from end to end (embedded broker, real encoder, under two minutes)
# make test   all test suites but what takes longer (under 12 minutes on two cores)
# make test-all  what takes longer: the demo of generated text, every benchmark in its quick form
# make test-deep  the scheduler's promises, ten thousand random traces each
# make check  ruff, mypy, import-linter
# make bench  the benchmarks, as JSON into benchmarks/results/ (ten minutes each at most)
# make bench-quick  a small version of every benchmark, to see that it works
# make up     a fleet on this machine until Ctrl-C
.PHONY: setup demo test test-all test-deep check bench bench-quick up format clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/fmplex demo

# Tests of real processes mostly wait for each other, so these run beside the others; what they print comes at the end.
BESIDE := tests/unit tests/tutorial tests/chaos/test_soak.py $(wildcard tests/chaos/test_generation*.py tests/integration/test_generation*.py)
test: setup
	@$(BIN)/python -m pytest $(BESIDE) $(PYTEST_ARGS) > $(VENV)/beside.log 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest tests $(addprefix --ignore=,$(BESIDE)) $(PYTEST_ARGS); rest=$$?; \
	wait $$beside; status=$$?; cat $(VENV)/beside.log; test $$rest -eq 0 && test $$status -eq 0

test-all: setup
	$(BIN)/python -m pytest -m long

test-deep: setup
	$(BIN)/python -m pytest tests/unit/scheduling --hypothesis-profile=deep --timeout=0

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every script that has a claim; what the soak says is whether something is left, which needs no picture.
BENCHMARKS := $(filter-out soak,$(basename $(notdir $(shell grep -lE '^ +main.Benchmark.' benchmarks/*.py))))
bench: setup
	mkdir -p benchmarks/results
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name --json > benchmarks/results/$$name.json || exit 1; done

bench-quick: setup
	$(BIN)/python -m pytest -m long tests/integration/test_benchmarks.py $(PYTEST_ARGS)

up: setup
	$(BIN)/fmplex up

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .fmplex
