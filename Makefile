# make demo   the main job from end to end (embedded broker, real encoder, under two minutes)
# make test   all test suites but the long ones
# make test-long  what takes minutes: most tests of generated text with real processes, under SIGKILL, SIGSTOP, restarts; its soak, its demo
# make test-deep  the scheduler's promises, ten thousand random traces each
# make check  ruff, mypy, import-linter
# make bench  the benchmarks, as JSON into benchmarks/results/
# make up     a fleet on this machine until Ctrl-C
.PHONY: setup demo test test-long test-deep check bench up format clean

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

# The unit tests run beside the others and yield to them; what they print comes at the end.
test: setup
	@nice -n 10 $(BIN)/python -m pytest tests/unit $(PYTEST_ARGS) > $(VENV)/unit.log 2>&1 & unit=$$!; \
	$(BIN)/python -m pytest tests --ignore=tests/unit $(PYTEST_ARGS); rest=$$?; \
	wait $$unit; status=$$?; cat $(VENV)/unit.log; test $$rest -eq 0 && test $$status -eq 0

test-long: setup
	$(BIN)/python -m pytest -m long

test-deep: setup
	$(BIN)/python -m pytest tests/unit/scheduling --hypothesis-profile=deep --timeout=0

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	mkdir -p benchmarks/results
	for name in adapters broker scheduler fairness shares overhead residency sharing load_curves peers generation generation_fairness; do $(BIN)/python -m benchmarks.$$name --json > benchmarks/results/$$name.json || exit 1; done

up: setup
	$(BIN)/fmplex up

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .fmplex
