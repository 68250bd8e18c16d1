# Two commands for a fresh machine: `make demo` and `make test`. Each makes .venv first if it is absent and compiles what
# changed under csrc/.
PYTHON ?= python3
venv := .venv
python := $(venv)/bin/python

# Without a GPU the demo needs no CUDA library, and for the tests one architecture shows that the CUDA sources compile and link;
# .ci/run compiles all of them.
ifeq ($(shell nvidia-smi -L 2>/dev/null | grep GPU),)
export TORCH_CUDA_ARCH_LIST ?= 9.0a
demo: export KDKERNELS_CUDA ?= 0
endif

.PHONY: help demo test bench gpu-check build clean

help:
	@echo 'make demo       distil a network on real digits; table and plot under out/demo/'
	@echo 'make test       everything that can be checked without a GPU'
	@echo 'make bench      speed on this CPU, beside eager PyTorch, torch.compile and others; out/bench/'
	@echo 'make gpu-check  build, test and measure on a GPU; installs nothing, uses PYTHON=$(PYTHON)'
	@echo 'make build      environment and libraries only'
	@echo 'make clean      remove what was built; .venv and out/ stay'

demo: build
	$(python) -m python_trainers.demo --out out/demo

# A worker per core. The tests of a file stay together, since many share what takes seconds to make.
test: build
	$(python) -m pytest -n auto --dist loadfile

# BENCH=--quick for small shapes.
bench: build
	$(python) -m benchmarks $(BENCH) --json out/bench/results.json
	$(python) -m benchmarks.report out/bench/results.json --plots out/bench >out/bench/tables.md

gpu-check:
	$(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -m benchmarks.gpu_check

build: $(venv)/ready
	$(python) setup.py -q build_ext --inplace

# Build tools first: without isolation they are not fetched for us, and setup.py imports torch.
$(venv)/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(venv)
	$(python) -m pip install -q -c constraints.txt torch numpy pybind11 ninja setuptools wheel
	$(python) -m pip install -q -c constraints.txt --no-build-isolation -e '.[trainers,test,test-trainers,bench]'
	touch $@

clean:
	rm -rf build dist *.egg-info kdkernels/*.so
