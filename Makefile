# `make train`, `make test`, `make test_all`, `make docs`; PYTHON=python3.12 make ... for another interpreter.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/digits
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: train test test_all lint docs environment clean

train: environment
	$(BIN)/python launch/train.py --config=configs/digits_lenet5.py --workdir=$(WORKDIR)

test: environment
	$(PYTEST)

# the slow ones, too, and with PyTorch where .ci/run has installed it
test_all: environment
	PYTHONPATH=.venv/torch$${PYTHONPATH:+:$$PYTHONPATH} $(PYTEST) -m ''

lint: environment
	$(BIN)/ruff check .
	$(BIN)/mypy

# the documentation as a web site, in site/; a broken link stops it
docs: environment .venv/.docs
	$(BIN)/python docs/write_config_tables.py
	$(BIN)/mkdocs build --strict
	@echo site/index.html

.venv/.docs: pyproject.toml .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.txt \
		--config-settings editable_mode=compat --editable '.[docs]'
	touch $@

environment: .venv/.installed

.venv/.installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--config-settings editable_mode=compat --editable .
	touch $@

clean:
	rm -rf .venv runs build dist site *.egg-info
