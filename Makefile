# Everything a fresh machine needs, given Python >= 3.10 with venv, gcc and make:
#
#   make demo     install into .venv, then learn to translate, write a report and release the model
#   make test     install into .venv, then run the tests
#
# The first run installs (5-10 minutes on two cores, most of it fairseq's C++); later runs start at once.

PYTHON  ?= python3
# Where fairseq's wheel is not built for a GPU, the torch release this project is tested with.
TESTED  := torch==2.13.0
TORCH   ?= $(TESTED)
FAIRSEQ := fairseq-fixed==0.12.3.1
CORPUS  ?= numbers
# More arguments: make test ARGS="-k splitting -x", make demo CORPUS=multi30k ARGS="--data-dir FOLDER"
ARGS    ?=
WORKERS ?= 2

VENV  := .venv
PY    := $(VENV)/bin/python
PIP   := $(PY) -m pip --disable-pip-version-check -qq
# One stamp per step, written when the step is complete: an interrupted install goes on where it stopped.
STAMP := $(VENV)/.macaron
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help install demo test slow versions docs lint format clean

help:  ## print this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 20
	@echo "  variables:        PYTHON=$(PYTHON) TORCH=$(TORCH) CORPUS=$(CORPUS) WORKERS=$(WORKERS) ARGS=$(ARGS)"

install: $(STAMP)/installed  ## make .venv with everything

demo: $(STAMP)/installed  ## learn to translate, write a report, release the model (CORPUS=numbers or multi30k)
	@$(PY) -m recipes.demo --corpus $(CORPUS) $(ARGS)

# One thread per worker: the models are tiny, and two workers with two threads each are slower than one.
test: $(STAMP)/installed  ## run the default tests (ARGS="-m slow" for the long ones)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile --durations=10 $(ARGS)

slow: $(STAMP)/installed  ## run the slow tests, and record the outcome in docs/runs.md (some ten minutes)
	@$(PY) tests/runs.py --workers $(WORKERS) slow

# Each environment is made by this Makefile in .versions/, some GB and minutes each; ARGS="3.10 lowest" for some of them.
versions: $(STAMP)/installed  ## run the default tests with each Python and with the lowest versions, and record it
	@$(PY) tests/runs.py --workers $(WORKERS) versions $(ARGS)

docs: $(STAMP)/installed  ## build the documentation into site/; warnings are errors
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs --quiet build --strict $(ARGS)

lint: $(STAMP)/installed  ## ruff (check and format) and mypy; changes nothing
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(STAMP)/installed  ## let ruff repair and format the code
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean:  ## remove .venv, caches and build leftovers
	@rm -rf $(VENV) .versions site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find macaron user_dir recipes tests -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# An existing .venv with a working pip is taken as it is, so that one's own environment survives.
$(STAMP)/venv:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "make: no '$(PYTHON)' on the PATH; install Python >= 3.10 or say which: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: $$($(PYTHON) --version) is too old; Python >= 3.10 is needed: make PYTHON=/path/to/python"; exit 1; }
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  echo "[1/5] creating $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv $(VENV) || \
	  { echo "make: '$(PYTHON) -m venv' failed; install Python's venv module (Debian: apt-get install python3-venv)"; exit 1; }; \
	fi
	@mkdir -p $(@D) && touch $@

# The torch that was asked for by name is the one of all later commands that name none, also where its installation was
# interrupted; asking for another installs it.
ifeq ($(origin TORCH),file)
TORCH := $(or $(shell cat $(STAMP)/asked 2>/dev/null),$(TORCH))
else
$(STAMP)/asked: FORCE
	@case "$(TORCH)" in *torch*) ;; *) \
	  echo "make: TORCH=$(TORCH) is not what pip installs as torch; say it like TORCH=$(TESTED)"; exit 1;; esac
	@mkdir -p $(@D) && { echo "$(TORCH)" | cmp -s - $@ || echo "$(TORCH)" > $@; }
$(STAMP)/torch: $(STAMP)/asked
endif
$(STAMP)/torch: $(wildcard $(STAMP)/asked)
.PHONY: FORCE

# fairseq's setup.py imports all of these, so they stand before it. setuptools below 82 still has pkg_resources,
# which source distributions among the dependencies may use.
$(STAMP)/torch: $(STAMP)/venv
	@echo "[2/5] installing $(TORCH) and the build requirements"
	@$(PIP) install "$(TORCH)" "numpy>=1.26,<3" "setuptools>=77,<82" "wheel<1" "cython>=3,<4" || \
	  { echo "make: $(TORCH) and the build requirements were not installed, and the next command tries again; if it is"; \
	    echo "      this torch that cannot be had, name another: make install TORCH=$(TESTED)"; exit 1; }
	@touch $@

# Without isolation, since pip would fetch a whole second torch to build against, and without dependencies, since
# torchaudio on the package index is a CUDA build that fails to import beside a CPU torch. CUDA_HOME would make
# fairseq build CUDA extensions, which text models do not need and a CPU torch cannot build. What pip keeps of earlier
# builds may be of another torch where one was asked for by name.
FRESH := $(if $(filter-out file,$(origin TORCH))$(wildcard $(STAMP)/asked),--no-cache-dir)
$(STAMP)/fairseq: $(STAMP)/torch
	@echo "[3/5] building $(FAIRSEQ) (3-5 minutes, once)"
	@env -u CUDA_HOME $(PIP) $(FRESH) wheel --no-deps --no-build-isolation --wheel-dir $(VENV)/wheels "$(FAIRSEQ)"
	@touch $@

$(STAMP)/installed: $(STAMP)/fairseq pyproject.toml
	@echo "[4/5] installing macaron with its requirements"
	@$(PIP) install --no-build-isolation -e ".[fairseq-text,bert,kernels,recipes,images,dev,docs]"
	@echo "[5/5] installing $(FAIRSEQ)"
	@$(PIP) install --no-deps --no-index --force-reinstall --find-links $(VENV)/wheels "$(FAIRSEQ)"
	@if $(PIP) show torchaudio >/dev/null 2>&1 && ! $(PY) -c 'import torchaudio' 2>/dev/null; then \
	  echo "      removing torchaudio: it does not match this torch, and transformers would import it"; \
	  $(PIP) uninstall --yes torchaudio; \
	fi
	@touch $@
	@echo "      done: $$($(PY) -c 'import macaron; print("macaron", macaron.__version__)') in $(VENV)"
