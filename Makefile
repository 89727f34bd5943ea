# `make` lists the targets. A target makes .venv and installs what it needs into it on first use, and again when
# pyproject.toml changes. To use an interpreter as it is, and install nothing, name it: make test-gpu PY=python3
PYTHON ?= python3
VENV ?= .venv
SANITIZER ?= compute-sanitizer
MARKS ?= not gpu and not slow

ifeq ($(origin PY),command line)
ready = # the caller's interpreter already has what the target needs
else
PY := $(VENV)/bin/python
export PATH := $(abspath $(VENV))/bin:$(PATH)
ready = $(VENV)/.ready-$(1)
endif

.PHONY: help demo test test-gpu bench notebooks lint sanitize clean
.NOTPARALLEL: # two pips in one .venv would race
.DELETE_ON_ERROR: # a half-made .venv is made again

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(call ready,plot) ## attention on real activations: every preset against the oracle, a table and a picture
	$(PY) -m cupy_intfa demo

test: $(call ready,test) ## every test that needs no GPU (NumPy backend, kernels compiled and inspected)
	$(PY) -m pytest -n 2 -m '$(MARKS)' --nbmake

test-gpu: $(call ready,test) ## the tests that need a GPU; fails where there is none
	$(PY) -m pytest -n 8 -p no:benchmark -m gpu --require-gpu

bench: $(call ready,bench) ## speed against the rivals that are installed, as JSON
	$(PY) -m cupy_intfa bench

notebooks: $(call ready,notebooks) ## execute the notebooks again, in place
	$(PY) -m nbconvert --to notebook --execute --inplace notebooks/*.ipynb

lint: $(call ready,test) $(call ready,lint) ## ruff, mypy, numpydoc, clang-format
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	find cupy_intfa -name '*.py' | xargs $(PY) -m numpydoc lint
	find kernels_cu -name '*.cu' -o -name '*.cuh' | xargs -r clang-format --dry-run -Werror

sanitize: $(call ready,test) ## every kernel under compute-sanitizer: memcheck, racecheck (SANITIZER=path to it)
	for tool in memcheck racecheck; do \
	PYTHONPATH="tests:$$PYTHONPATH" $(SANITIZER) --tool $$tool --error-exitcode 1 $(PY) -m kernels.sanitize $$tool || exit 1; \
	done

clean: ## remove .venv, caches and build folders
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# One stamp for each extra of pyproject.toml. Where nvidia-smi answers CuPy joins it, the wheel by the driver's CUDA.
$(VENV)/.ready-%: pyproject.toml | $(VENV)/bin/python
	@cuda=$$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Z ]* Version: *\([0-9]*\).*/\1/p' | head -n 1); extras=$*; \
	case $$cuda in \
	'') cuda='none found, so no CuPy' ;; \
	[1-9] | 1[01]) cuda="$$cuda, too old for CuPy 14" ;; \
	12) extras=$*,cuda12x ;; \
	*) extras=$*,cuda13x ;; \
	esac; \
	echo "CUDA of the driver: $$cuda; installing .[$$extras] into $(VENV)"; \
	$(PY) -m pip install --quiet -e ".[$$extras]"
	@touch $@
