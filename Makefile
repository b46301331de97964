# make demo   proofs, plots and report/index.html
# make test   the tests
# make mutants   change the code in small ways: is each noticed? (an hour or more; docs/mutants.md)
# make lint   ruff, mypy and the import contract
# make wheel  build the wheel and look at what it installs
# make coq    check the proofs in equivalence/coq/; needs coqc (Debian's package coq), and no .venv
# make clean  remove what these made
#
# Each sets itself up in .venv: any Python from 3.10 will do (make demo PYTHON=python3.12).

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin

.PHONY: demo test mutants lint wheel coq clean

demo: .venv/ready
	$(BIN)/mixerzoo report --output report
	@echo "open report/index.html"

# Two processes of one thread each: the tests' tensors are too small for more threads.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal

# A sample of every file; all of them: make mutants MUTANTS=
MUTANTS ?= --sample 30
mutants: .venv/ready-dev
	nice $(BIN)/python tests/mutants --jobs $(JOBS) $(MUTANTS)

# mypy and import-linter see the package by its name through a link to this folder.
lint: .venv/ready-dev
	mkdir -p build/by-name && ln -sfn ../.. build/by-name/mixerzoo
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/by-name $(BIN)/mypy -p mixerzoo.kernels -p mixerzoo.mixers -p mixerzoo.equivalence
	PYTHONPATH=build/by-name $(BIN)/lint-imports

wheel: .venv/ready
	rm -rf dist build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python tests/installed.py dist/*.whl

coq:
	$(PYTHON) equivalence/machine_checked.py --build build/coq

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mixerzoo needs Python 3.10 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist report *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
