# What a newcomer types. A fresh Debian or Ubuntu machine needs make, Python >= 3.10 and pip; everything else goes
# into a virtual environment of its own. Variables:
#   PYTHON        the interpreter (python3)
#   PYTEST_ARGS   further arguments for pytest, e.g. make test PYTEST_ARGS="-n 4 tests/unit"
#   TORCH_INDEX   where torch's CPU build comes from when pip's own sources have none
PYTHON ?= python3
PYTEST_ARGS ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV ?= .venv
DEMO_VENV ?= .venv-demo

TORCH := $(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
PINS := pyproject.toml constraints.txt
PIP_INSTALL = $(dir $@)bin/python -m pip install -qq --disable-pip-version-check

.PHONY: help demo test test-long test-deps lint bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       run the examples here, in a fresh environment; writes report.xml'
	@echo 'make test       run the test suite (tests that need Slurm are skipped where it is not installed)'
	@echo 'make test-deps  install Slurm, munge and sshd for the tests, by apt, starting nothing'
	@echo 'make test-long  the suite with the long versions of its tests'
	@echo 'make lint       formatting, lint, types, and the oldest Python the agent runs on'
	@echo 'make bench      the benchmarks'

demo: $(DEMO_VENV)/ready
	$(DEMO_VENV)/bin/python -m pytest examples/ -v --junitxml=report.xml

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-long: $(VENV)/ready
	$(VENV)/bin/python -m pytest --run-long $(PYTEST_ARGS)

test-deps:
	tests/support/install-deps

lint: $(VENV)/ready
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy conftest.py tests $(wildcard benchmarks/*.py)
	$(VENV)/bin/vermin --quiet --no-tips --violations --target=3.8- agent

bench: $(VENV)/ready
	$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --requirement benchmarks/requirements.txt
	set -e; for name in collect idle_plugin local_cases loop_and_log checkpoint restore training slurm_array; do \
		$(VENV)/bin/python -m benchmarks.$$name; done

clean:
	rm -rf $(VENV) $(DEMO_VENV) report.xml

$(DEMO_VENV)/ready: EXTRAS = examples
$(VENV)/ready: EXTRAS = dev

# PyPI's torch for Linux brings gigabytes of CUDA packages, and no test or example needs a GPU. So its CPU build is
# taken from wherever pip already looks, else from pytorch.org; only where neither has it, PyPI's. To use a GPU in
# the examples: make demo TORCH_INDEX=https://pypi.org/simple
%/ready: $(PINS)
	@tests/support/make-venv $(PYTHON) $*
	@$(PIP_INSTALL) --no-deps torch==$(TORCH)+cpu 2>/dev/null \
	|| $(PIP_INSTALL) --no-deps --retries 1 --index-url $(TORCH_INDEX) torch==$(TORCH) \
	|| echo "no CPU build of torch $(TORCH) for this Python; taking PyPI's"
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@
