# Everything runs in .venv, which the first target that needs it creates. Variables: PYTHON, VENV, TORCH, TRITON, JOBS.

PYTHON ?= python3
VENV ?= .venv
# The build that development and CI agree on; on Linux, pip's own index offers it with CUDA.
TORCH ?= torch==2.13.0
# Compiles the GPU kernels, and interprets them where there is no GPU.
TRITON ?= triton==3.6.0
JOBS ?= auto
# Marks of tests that `make test` leaves to other targets; continuous integration adds "metal".
SKIP ?= offline

BIN := $(VENV)/bin
PY := $(BIN)/python
READY := $(VENV)/.ready
CLIENTS := $(VENV)-clients
# Test processes share the cores; each would otherwise start a thread on every one.
# One test at a time: no core waits for another that has several left.
RUN_TESTS := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --maxschedchunk 1

.PHONY: demo test test-offline record-offline test-tritons test-newest check lint types docs coverage test-all checker test-clients test-metal mac-selftest gpu-check gpu-sanitize gpu-bench wheel clean

demo: $(READY)
	$(BIN)/vicinal demo

test: $(READY)
	$(RUN_TESTS) -m "not ($(SKIP))"

# GPU kernels compiled for GPUs that need not be here: registers, shared memory, matrix instructions. `make test`
# compiles all for sm_90, and portable ones for others if they are in a sample or not recorded; this, all of them.
test-offline: $(READY)
	$(RUN_TESTS) -m offline tests/triton

# The same, and records it.
record-offline: $(READY)
	$(PY) -m tests.triton.recorded

# The portable kernels with the oldest release of Triton, one between, and every one with the newest: downloads a
# gigabyte.
test-tritons: $(READY)
	$(PY) -m tests.triton.versions --folder $(VENV)-tritons

# A sample of the portable kernels with the newest release of Triton.
NEWEST := --sample --target cuda:90 --target cuda:100 --target hip:gfx942 newest
test-newest: $(READY)
	$(PY) -m tests.triton.versions --folder $(VENV)-tritons $(NEWEST)

check: lint types docs test

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/pyright --pythonpath $(PY)

docs: $(READY)
	$(BIN)/mkdocs build --strict --quiet

coverage: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m coverage run -m pytest tests/test_*.py tests/torch
	$(PY) -m coverage report

# Each interpreter on the PATH, without the ones too old; PyTorch where pip finds the pinned build for it.
test-all: $(READY)
	$(PY) tests/interpreters.py

# Debian and Ubuntu: clang 19, with which the Metal kernels run on a CPU.
checker: $(READY)
	PYTHON=$(abspath $(PY)) tools/mslcpu/setup.sh

# The Metal kernels: on Linux in the checker, whose own tests run too; on a Mac on its GPU, and all of MLX besides.
test-metal: checker
	$(RUN_TESTS) tests/metal $(if $(filter Darwin,$(shell uname)),tests/mlx,tools/mslcpu/tests)

# On a Mac: checks, times, and a results file to send in.
mac-selftest: $(READY)
	$(PY) tools/mac_selftest.py

# Need an NVIDIA GPU and a CUDA build: make gpu-check TORCH='torch>=2.9'. Compiling is most of the work, so
# every core takes a test at a time; those of one group, which fill the GPU's memory, run in one process.
gpu-check: $(READY)
	$(RUN_TESTS) --dist loadgroup -m cuda

# compute-sanitizer on faults planted for it, and on every family of kernels; README says what it reports.
gpu-sanitize: $(READY)
	$(PY) -m tests.triton.sanitize

gpu-bench: $(READY)
	$(PY) benchmarks/run.py --backend triton --flex --out benchmarks/results/triton.json
	$(PY) benchmarks/hopper.py --flex --out benchmarks/results/hopper.json
	$(PY) benchmarks/hopper.py --float8 --out benchmarks/results/float8.json
	$(PY) benchmarks/hopper.py --between --out benchmarks/results/between.json
	$(PY) benchmarks/documents.py --out benchmarks/results/documents.json
	$(PY) benchmarks/host.py --out benchmarks/results/host.json

# Programs written for NATTEN, in an environment with their own releases; each in a process of its own, because
# some keep out modules that others want, and one wants another release of a package than the rest.
HUB := tests/clients/test_diffusers.py
RUN_CLIENT := env VICINAL_CLIENTS=1 OMP_NUM_THREADS=1 $(CLIENTS)/bin/python -m pytest
test-clients: $(CLIENTS)/.ready
	printf '%s\n' $(filter-out $(HUB),$(wildcard tests/clients/test_*.py)) tests/compat/test_flops.py | xargs -n 1 -P 2 $(RUN_CLIENT)
	PYTHONPATH=$(CLIENTS)/hub $(RUN_CLIENT) $(HUB)

$(CLIENTS)/.ready: tests/clients/requirements.txt tests/clients/hub.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet $(TORCH)
	$(CLIENTS)/bin/python -m pip install --quiet --no-deps --requirement tests/clients/requirements.txt
	$(CLIENTS)/bin/python -m pip install --quiet --no-deps --target $(CLIENTS)/hub --requirement tests/clients/hub.txt
	$(CLIENTS)/bin/python -m pip install --quiet --editable .
	touch $@

wheel: $(READY)
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(CLIENTS) $(VENV)-tritons build dist site demo .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "vicinal needs Python 3.10 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet --editable '.[dev]'
ifeq ($(shell uname -sm),Linux x86_64)
	$(PY) -c 'import triton' 2>/dev/null || $(PY) -m pip install --quiet $(TRITON)
endif
	touch $(READY)
