# `make demo` and `make test` do all their own set-up: nothing but Python 3.11-3.13 and make is needed.
# VENV=DIR puts the virtual environment elsewhere, PYTHON=python3.12 chooses the interpreter.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --prefer-binary --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest

# PyTorch is only a reference in tests; from here it comes without gigabytes of CUDA. Elsewhere pip falls back on PyPI.
TORCH_CPU := --quiet --extra-index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 30

.PHONY: demo test test-slow test-all faults fuzz lint clean

demo: $(VENV)/.installed ## Four pictures of the astronaut in out/demo.
	$(BIN)/caphuman generate --reference caphuman_jax/assets/astronaut_nasa.png \
		--prompt "a photo of a smiling person" --expression smile=0.8 --yaw 15 --num-images 4 --out out/demo

# One process a core, up to four: each takes about 3 GB. A file's tests stay together, since they share what is compiled.
test: $(VENV)/.installed-test ## The fast tests.
	$(PYTEST) -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-test ## The slow tests alone.
	$(PYTEST) -m slow || [ $$? = 5 ] # 5: there are none

test-all: test test-slow

# An hour or two on two cores. Results are kept in FAULTS, so that the same command resumes.
FAULTS ?= build/faults
faults: $(VENV)/.installed-test ## Kills, full disks and other faults at many moments of every verb that writes.
	$(BIN)/python tests/faults/matrix.py --state $(FAULTS)

# Every reader of foreign files on N mutated inputs, in processes of their own: docs/reliability.md.
N ?= 100000
fuzz: $(VENV)/.installed-test ## For example: make fuzz N=100000 READERS="photo pickle"
	$(PIP) atheris || echo "without atheris, inputs are not guided by coverage"
	PYTHONPATH=tests $(BIN)/python -m fuzz.run --inputs $(N) $(READERS)

lint: $(VENV)/.installed-lint ## Style, formatting, layers and circles of imports, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache out/demo
	find caphuman_jax data_pipeline configs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are older than what they were made from only when an installation is due again.
$(VENV)/.installed: setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 with venv is needed (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(PIP) --editable '.[lint]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) $(TORCH_CPU) torch
	$(PIP) --editable '.[test,train,data,studio]'
	touch $@
