# Every target works on a machine that has Python 3.11 or newer and nothing else installed.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART ?=

.PHONY: quickstart test lint bench clean venv

quickstart: .venv/ready  ## a sweep on scikit-learn's digits, with certificates and MLflow
	$(BIN)/raybust tune search_spaces/quickstart.yaml $(QUICKSTART)

test: .venv/ready  ## all tests, with coverage
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest --numprocesses 2 --dist loadgroup
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --skip-covered --sort=cover | tail -n 25

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## every benchmark; one JSON line a figure
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*

venv: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
