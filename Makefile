# Two commands do everything on a fresh machine: `make demo` and `make test`.
# In an existing environment, without network: make test PYTHON=python VENV=

PYTHON ?= python3
VENV   ?= .venv
PIP_FLAGS ?= --disable-pip-version-check --quiet

ifeq ($(strip $(VENV)),)
  PY      := $(PYTHON)
  READY   :=
  TOOLS   :=
  INSTALL  = $(PY) setup.py --quiet build_ext --inplace
else
  PY      := $(VENV)/bin/python
  READY   := $(VENV)/.ready
  TOOLS   := $(VENV)/.ready-tools
  INSTALL  = $(PY) -m pip install $(PIP_FLAGS) --no-compile --no-build-isolation --no-deps --editable .
endif

# In a checkout the package is imported from here, whatever environment runs it.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
# Images of containers often set it. Every one of many short programs would then compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

SOURCES := $(shell find csrc cmake build_tools -type f) CMakeLists.txt setup.py pyproject.toml
# The stamp of the last build: of which interpreter and choice about CUDA. After a change of torch: make -B build.
BUILT   := build/.built-$(subst /,_,$(PY))-cuda_$(or $(GRADKERN_CUDA),auto)
ifeq ($(wildcard gradkern/_C*.so),)
.PHONY: $(BUILT)
endif

.DEFAULT_GOAL := help
.PHONY: help setup build demo test integration cpp-test slow-test sanitize ptx races litmus bench diagnose lint docs format wheel clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  In an existing environment, without network: make test PYTHON=python VENV="

setup: $(TOOLS)  ## virtual environment with the pinned dependencies

# In two steps: the demo needs the first one alone.
ifneq ($(READY),)
$(READY): constraints.txt pyproject.toml
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing torch and what builds the extension, once. The kernels are compiled meanwhile."
	$(PY) -m pip install $(PIP_FLAGS) --no-compile -c constraints.txt cmake ninja
	@mkdir -p build
	@# A failure is repeated and shown by the build itself.
	$(PY) build_tools/kernels.py >build/kernels.log 2>&1 & \
	    $(PY) -m pip install $(PIP_FLAGS) --no-compile -c constraints.txt torch==2.13.0 \
	        numpy setuptools wheel matplotlib; status=$$?; wait; exit $$status
	touch $@

# Byte code is made on all cores, of what every start of Python here imports; pip would use one core for all.
$(TOOLS): $(READY)
	$(PY) -m pip install $(PIP_FLAGS) --no-compile -c constraints.txt \
	    pytest pytest-timeout pytest-xdist hypothesis expecttest ruff mypy \
	    mkdocs mkdocs-material mkdocstrings mkdocstrings-python \
	    rich pandas scikit-learn pyarrow tensorboard wandb mlflow-skinny accelerate
	cd $(VENV)/lib/python*/site-packages && { $(abspath $(PY)) -m compileall -q -j 0 torch numpy sympy >/dev/null || true; }
	touch $@
endif

build: $(BUILT)  ## compile the extension (only what changed)

$(BUILT): $(READY) $(SOURCES)
	@echo "Compiling the kernels and the binding for this torch."
	$(INSTALL)
	@mkdir -p build && rm -f build/.built-* && touch $@

demo: build  ## the main job: train with and without clipping, per-layer norms, a picture
	$(PY) -m gradkern demo

# Side by side where pytest-xdist is there; threads that wait then leave the cores to others.
SIDE_BY_SIDE = $(shell $(PY) -c "import xdist" 2>/dev/null && printf %s "-n auto --maxprocesses 4 --dist loadfile")

test: $(TOOLS) build cpp-test  ## the test suite, without what `make integration` holds
	OMP_WAIT_POLICY=passive $(PY) -m pytest -q $(SIDE_BY_SIDE) $(PYTEST_FLAGS)

# The frameworks have an environment of their own, on top of the first: their many pins must not decide ours.
FRAMEWORKS ?= .venv-integration
$(FRAMEWORKS)/.ready: requirements/integration.txt $(TOOLS)
	$(PY) -m venv --clear $(FRAMEWORKS)
	$(PY) -c "import sysconfig; print(sysconfig.get_path('purelib'))" >$$(echo $(FRAMEWORKS)/lib/python*/site-packages)/base.pth
	$(FRAMEWORKS)/bin/python -m pip install $(PIP_FLAGS) --no-compile --no-deps -r requirements/integration.txt
	touch $@

integration: $(TOOLS) build $(FRAMEWORKS)/.ready  ## what is slower: frameworks, a browser, the site, examples, whole programs
	OMP_WAIT_POLICY=passive $(PY) -m pytest -q -m integration --ignore tests/integrations \
	    $(SIDE_BY_SIDE) $(PYTEST_FLAGS)
	GRADKERN_INTEGRATION=1 OMP_WAIT_POLICY=passive $(FRAMEWORKS)/bin/python -m pytest -q \
	    -m "integration or not slow" tests/integrations $(SIDE_BY_SIDE) $(PYTEST_FLAGS)

cpp-test: $(READY)  ## C++ tests of csrc/core, cpu and cuda (modelled); no torch
	$(PY) scripts/cpp_tests.py build/cpp-tests

slow-test: $(TOOLS) build  ## more than 2^31 elements; about 10 GB of memory
	$(PY) -m pytest -q -m slow $(PYTEST_FLAGS)

sanitize: $(READY)  ## the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(PY) scripts/cpp_tests.py build/cpp-sanitize --sanitize address,undefined

ptx: $(READY)  ## the tests of the CUDA kernels on what nvcc makes of them, executed on the host; needs nvcc
	$(PY) scripts/run_ptx.py build/ptx

races: $(READY)  ## races of the CUDA kernels, modelled under ThreadSanitizer; each synchronisation removed in turn
	$(PY) scripts/race_mutants.py

litmus:  ## the CUDA kernels' last-block protocol in every interleaving; each synchronisation removed in turn
	$(PYTHON) scripts/litmus.py

bench: build  ## gradkern beside torch and a raw read of the same memory
	$(PY) benchmarks/bench_clip.py
	$(PY) benchmarks/bench_value.py
	$(PY) benchmarks/bench_instruction_sets.py

diagnose: $(TOOLS) build  ## the labelled suite of the diagnosis: its figures
	$(PY) -m benchmarks.diagnosis

lint: $(TOOLS)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: $(TOOLS)  ## the documentation site in build/site
	$(PY) -m mkdocs build --strict

format: $(TOOLS)  ## ruff format
	$(PY) -m ruff format .

wheel: $(READY)  ## a wheel in dist/
	$(PY) -m pip wheel $(PIP_FLAGS) --no-build-isolation --no-deps --wheel-dir dist .

clean:  ## everything built; the virtual environment stays
	rm -rf build dist *.egg-info gradkern/*.so gradkern/lib .mypy_cache .ruff_cache .pytest_cache
