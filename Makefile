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

.PHONY: demo test test-slow test-slow-together test-slow-alone test-all coverage faults fuzz lint lock audit sbom clean

demo: $(VENV)/.installed ## Four pictures of the astronaut in out/demo.
	$(BIN)/caphuman generate --reference caphuman_jax/assets/astronaut_nasa.png \
		--prompt "a photo of a smiling person" --expression smile=0.8 --yaw 15 --num-images 4 --out out/demo

# One process a core, up to four: each takes about 3 GB. A file's tests stay together, since they share what is compiled.
test: $(VENV)/.installed-test ## The fast tests.
	$(PYTEST) -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Two processes, then one for the tests that need the whole machine. Both parts run, even if the first fails.
test-slow: ## The slow tests.
	$(MAKE) test-slow-together; together=$$?; $(MAKE) test-slow-alone && exit $$together

# 5: there are none.
test-slow-together: $(VENV)/.installed-test
	$(PYTEST) -m "slow and not alone" -n 2 --dist loadfile --no-loadscope-reorder || [ $$? = 5 ]

test-slow-alone: $(VENV)/.installed-test
	$(PYTEST) -m "slow and alone" || [ $$? = 5 ]

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

# Commands that tests start are measured, too. TESTS="tests/io tests/cli" measures less.
coverage: $(VENV)/.installed-test $(VENV)/.installed-supply ## Lines of the packages that the fast tests run.
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --sort=cover

lint: $(VENV)/.installed-lint ## Style, formatting, layers and circles of imports, workflows, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# setuptools is in every set: with it, the package itself is built without fetching anything more.
lock: $(VENV)/.installed-supply ## locks/: the versions of constraints.txt with the hashes of their files.
	mkdir -p locks
	$(call LOCK,core)
	$(call LOCK,cuda,--extra cuda)
	$(call LOCK,tpu,--extra tpu)
	$(call LOCK,all,--extra train --extra data --extra studio --extra heic --extra buckets --extra insightface)

LOCK = echo setuptools | $(BIN)/uv --quiet --no-config pip compile setup.py - $(2) --constraint constraints.txt \
	--universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	--custom-compile-command "make lock" --upgrade --output-file locks/$(1).txt >/dev/null

audit: $(VENV)/.installed-supply ## Published vulnerabilities of the locked versions.
	for set in core cuda tpu all; do $(BIN)/pip-audit --strict --disable-pip -r locks/$$set.txt || exit 1; done

sbom: $(VENV)/.installed-supply ## build/sbom.json: what an installation of locks/core.txt holds, in CycloneDX's form.
	rm -rf build/sbom && mkdir -p build/sbom
	$(BIN)/uv --quiet venv --python $(BIN)/python build/sbom/env
	$(BIN)/uv --quiet pip install --python build/sbom/env/bin/python --require-hashes -r locks/core.txt
	$(BIN)/python -c "$$PROJECT" >build/sbom/pyproject.toml
	$(BIN)/cyclonedx-py environment build/sbom/env/bin/python --pyproject build/sbom/pyproject.toml \
		--mc-type library --output-reproducible --validate --output-file build/sbom.json

# What the SBOM describes: the package, with what it requires.
define PROJECT
import importlib.metadata, json
package = importlib.metadata.distribution("caphuman-jax")
needs = [need for need in package.requires if "extra ==" not in need]
print("[project]", 'license = "Apache-2.0"', sep="\n")
for name, value in dict(name=package.name, version=package.version, dependencies=needs).items():
    print(name, "=", json.dumps(value))
endef
export PROJECT

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .coverage* out/demo
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

$(VENV)/.installed-supply: $(VENV)/.installed
	$(PIP) --editable '.[supply]'
	touch $@
