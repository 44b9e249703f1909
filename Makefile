# Every target works on a machine that has Python 3.11 or newer and nothing else installed.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART ?=

.PHONY: quickstart test test-ray test-rest lint bench clean venv

quickstart: .venv/ready  ## a sweep on scikit-learn's digits, with certificates and MLflow
	$(BIN)/raybust tune search_spaces/quickstart.yaml $(QUICKSTART)

test: .venv/ready  ## all tests, with coverage; those that start Ray mostly wait, so the others run beside them
	$(BIN)/coverage erase
	$(MAKE) --jobs 2 --output-sync=target test-ray test-rest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover | tail -n 25

test-ray test-rest: export OMP_NUM_THREADS = 1
test-ray:
	$(BIN)/coverage run -m pytest -m "cluster"

test-rest:
	$(BIN)/coverage run -m pytest -m "not cluster"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## every benchmark; one JSON line a figure
	for file in $(filter-out %/compare_autoattack.py benchmarks/reproduce_%,$(wildcard benchmarks/[a-z]*.py)); do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*

venv: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
