# Every target needs only Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
QUICKSTART ?=
PYTEST ?= $(BIN)/python -m pytest
SLOW := drills or hosts or postgres

.PHONY: quickstart test device gpu drills coverage lint bench docs dist clean venv

quickstart: .venv/ready  ## a sweep on scikit-learn's digits, with certificates and MLflow
	$(BIN)/raybust tune search_spaces/quickstart.yaml $(QUICKSTART)

# Tests that start Ray wait for processes half of the time, so the others run next to them.
test: export OMP_NUM_THREADS = 1
test: .venv/ready  ## all tests except the drills
	mkdir -p build
	(nice $(PYTEST) -m "not cluster and not ($(SLOW))"; code=$$?; $(MAKE) device || code=1; exit $$code) \
	  > build/test.log 2>&1 & rest=$$!; trap "kill $$rest" INT TERM; \
	$(PYTEST) -m "cluster and not ($(SLOW))"; ray=$$?; \
	wait $$rest; code=$$?; cat build/test.log; \
	exit $$(( ray || code ))

gpu: .venv/ready  ## correctness and speed on a real GPU in five minutes; toy size without one
	$(BIN)/python benchmarks/gpu.py

# Python finds the device by an entry point on its path, in Ray's workers too.
device: export OMP_NUM_THREADS = 1
device: .venv/ready  ## the tests on a pretended device, part of `make test`; needs a C++ compiler
	code=0; $(BIN)/python tests/device/pretend.py || code=$$?; \
	if [ $$code = 3 ]; then exit 0; elif [ $$code != 0 ]; then exit $$code; fi; \
	PYTHONPATH=$(CURDIR)/build/pretend:$(CURDIR)/tests/device RAYBUST_DEVICE=pretend $(PYTEST) tests/device

drills: export OMP_NUM_THREADS = 1
drills: .venv/ready  ## failure drills, isolated hosts, PostgreSQL: too slow for `make test`
	$(PYTEST) -m "$(SLOW)" -s -rs

coverage: export PYTEST = $(BIN)/coverage run -m pytest
coverage: .venv/ready  ## all tests, with line coverage
	$(BIN)/coverage erase
	$(MAKE) test
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover | tail -n 25

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready  ## every benchmark; one JSON line per figure
	for file in $(filter-out %/compare_autoattack.py %/gpu.py benchmarks/reproduce_%,$(wildcard benchmarks/[a-z]*.py)); do $(BIN)/python $$file || exit 1; done

docs: .venv/ready .venv-docs/ready  ## the documentation in build/site, every link and name checked
	$(BIN)/python docs/generate.py build/docs
	PYTHONPATH=docs .venv-docs/bin/zensical build --clean --strict
	$(BIN)/python docs/check.py build/site

dist: .venv-dist/ready  ## wheel and sdist in dist/, checked and tried in an empty folder
	rm -rf dist build/try
	.venv-dist/bin/python -m build --quiet
	.venv-dist/bin/twine check --strict dist/*
	$(PYTHON) -m venv build/try/venv
	build/try/venv/bin/pip install --quiet --disable-pip-version-check -r requirements.lock dist/*.whl
	mkdir build/try/empty
	cd build/try/empty && ../venv/bin/raybust tune quickstart tune.trials=2 train.epochs=2 \
	  tune.finalists=1 certify.examples=20 certify.n=1000 evaluate.examples=20

clean:
	rm -rf .venv .venv-docs .venv-dist .cache build dist .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*

venv: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv-docs/ready: requirements-docs.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	touch $@

.venv-dist/ready:
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/pip install --quiet --disable-pip-version-check build==1.6.1 twine==7.0.0
	touch $@
