# Each target sets up what it needs, once, in .venv, and runs. PYTHON names an interpreter of 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-networks parity clean

demo: $(VENV)/ready
	$(BIN)/python main.py --config=configs/synthetic.py --workdir=runs/demo
	$(BIN)/python main.py --workdir=runs/demo --mode=evaluate

test: $(VENV)/ready-test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -m "not networks" --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test-networks: $(VENV)/ready-test
	$(BIN)/python -m pytest -m networks tests/models tests/benchmark --numprocesses=logical --maxprocesses=4 --dist=loadgroup

parity: $(VENV)/ready-parity
	$(BIN)/python -m pytest tests/parity

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-test: requirements-test.txt $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

$(VENV)/ready-parity: requirements-parity.txt $(VENV)/ready-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	touch $@

clean:
	rm -rf $(VENV) runs data
