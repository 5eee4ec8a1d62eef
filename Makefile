# The commands of every day. `make help` lists them.
BUILD ?= build
JOBS ?= 2
SECONDS ?= 60
COUNT ?= 2000
CORPUS ?= $(BUILD)/fuzz
CAPTURE ?= test/data/smollm2-slice
WHEELS ?= dist
GGML ?=
TORCH ?=
PYTHON := .venv/bin/python
CC := clang-22
CXX := clang++-22
# Tests that `make check` runs with sanitizers, too: of the memory of caches and of files that somebody else wrote. They compile in a minute.
SANITIZED ?= Support Runtime

# Precompiled headers are cacheable once ccache stops comparing times. A second checkout finds what the first compiled: paths are relative for ccache.
export CCACHE_SLOPPINESS := pch_defines,time_macros,include_file_mtime,include_file_ctime
export CCACHE_PCH_EXTSUM := 1
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1

.DEFAULT_GOAL := build
.PHONY: help setup configure build check check-gcc check-sanitize sanitized check-torch demo wheel bench bench-gpu fuzz update-phases update-resources update-coverage update-performance mutate differential clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install missing system packages and the virtual environment
	@utils/setup.sh

build: configure ## compile everything (JOBS=2, BUILD=build)
	@ninja -C $(BUILD) -j$(JOBS)

configure: setup
	@cmake -G Ninja -S . -B $(BUILD) --log-level=WARNING \
	  -DCMAKE_C_COMPILER=$(CC) -DCMAKE_CXX_COMPILER=$(CXX) \
	  -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
	  -DALIGNED_PYTHON=$(if $(wildcard python_bindings/CMakeLists.txt),ON,OFF) -DPython_EXECUTABLE=$(abspath $(PYTHON))

check: build sanitized ## run every test; the last line is `N passed, N failed`
	@$(PYTHON) utils/check.py $(BUILD) --sanitized $(SANITIZED_TESTS)

check-gcc: ## the same with g++, in BUILD-gcc
	@$(MAKE) check BUILD=$(BUILD)-gcc CC=gcc CXX=g++

# clang's sanitizers are a package of their own (libclang-rt-22-dev).
SANITIZED_TESTS = $(SANITIZED:%=$(BUILD)-sanitize/test/unittests/%Tests)
sanitized: setup
	@cmake -G Ninja -S . -B $(BUILD)-sanitize --log-level=WARNING -DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++ \
	  -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DALIGNED_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(PYTHON))
	@ninja -C $(BUILD)-sanitize -j$(JOBS) $(SANITIZED:%=%Tests)

check-sanitize: SANITIZED = Support Reference Runtime Stages Emulator Cuda
check-sanitize: sanitized ## run the tests of all that has no LLVM inside with AddressSanitizer and UndefinedBehaviorSanitizer, in BUILD-sanitize
	@$(PYTHON) utils/check.py --sanitized $(SANITIZED_TESTS)

check-torch: build ## install torch and transformers in .venv-torch (some GB), and run the tests that need them
	@utils/torch.sh
	@PYTHONPATH=$(BUILD)/python .venv-torch/bin/python -m pytest -q -p no:cacheprovider test/python/test_transformers.py test/python/test_attend.py

demo: configure ## one model through the phases, a real cache under four policies, and a language model that answers
	@ninja -C $(BUILD) -j$(JOBS) aligned-opt aligned-run _alignedkv
	@$(PYTHON) utils/demo.py $(BUILD)

wheel: setup ## the Python package as a wheel, in WHEELS=dist
	@CC=clang-22 CXX=clang++-22 CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	  $(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --config-settings=build-dir=$(BUILD)-wheel -w $(WHEELS) .

bench: build ## time kernels in turn, on a quiet machine (CAPTURE=DIR, a captured cache of some thousand tokens; GGML=FOLDER, llama.cpp's libraries; TORCH=PYTHON, one that has torch)
	@$(PYTHON) benchmarks/cpu/bench.py $(BUILD) --capture=$(CAPTURE) $(if $(GGML),--ggml=$(GGML)) $(if $(TORCH),--torch=$(TORCH))

bench-gpu: build ## put the measurement of GPU kernels into build/bench-gpu, and try it on the interpreter
	@$(PYTHON) benchmarks/gpu/build.py $(BUILD) -o $(BUILD)/bench-gpu --jobs $(JOBS)
	@ALIGNED_LIBCUDA=$(abspath $(BUILD))/lib/libaligned_cuda_emulator.so $(PYTHON) $(BUILD)/bench-gpu/bench.py --small --out $(BUILD)/bench-results

fuzz: build ## search for caches on which an error exceeds its certified bound (SECONDS=60, CORPUS=build/fuzz)
	@ninja -C $(BUILD) -j$(JOBS) aligned-fuzz
	@mkdir -p $(CORPUS)
	@$(BUILD)/bin/aligned-fuzz $(CORPUS) -artifact_prefix=$(CORPUS)- -max_total_time=$(SECONDS) -len_control=0 -print_final_stats=1

mutate: build ## change graphs a little and see that none is raised to what it does not say (COUNT=2000)
	@$(PYTHON) utils/mutate.py $(BUILD) --count $(COUNT)

differential: build ## compare random caches and attentions with NumPy (COUNT=2000), then see that memory does not grow
	@PYTHONPATH=$(BUILD)/python $(PYTHON) utils/differential.py --count $(COUNT)
	@PYTHONPATH=$(BUILD)/python $(PYTHON) utils/differential.py --leaks

update-phases: build ## write test/Pipelines/decode/{1-raise,...}.mlir again
	@$(PYTHON) utils/phases.py $(BUILD)

update-resources: build ## write test/Conversion/AlignedToNVVM/Inputs/resources.txt again
	@$(PYTHON) utils/resources.py $(BUILD) --write

update-coverage: build ## write test/Raise/COVERAGE.md again: which graphs of real front ends are understood
	@$(PYTHON) utils/coverage.py $(BUILD) --write

update-performance: bench-gpu ## write docs/Performance.md again
	@cp $(BUILD)/bench-results/interpreter.json $(BUILD)/bench-results/interpreter.svg benchmarks/results
	@$(PYTHON) benchmarks/gpu/report.py benchmarks/results/*.json > docs/Performance.md

clean: ## remove what was built (.venv stays)
	rm -rf $(BUILD)
