# SPDX-License-Identifier: Apache-2.0
#
# The front door. `make` prints what there is; CMakePresets.json has the builds themselves.

JOBS ?= 2
WERROR ?= $(if $(filter true 1,$(CI)),ON,OFF)
ROOM ?=
export TRACE ?=
# Builds with the same flags share what the compiler cache has, whatever their folders are called.
export CCACHE_NOHASHDIR ?= 1

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# $(call build,<preset>[,<targets>]): configure and build. $(call ctest,<preset>[,<arguments>]): run.
configure = cmake --preset $(1) -DKVBM_WERROR=$(WERROR)
build = $(call configure,$(1)) && cmake --build --preset $(1) -j $(JOBS) $(if $(2),--target $(2))
ctest = ctest --preset $(1) -j $(JOBS) $(2)
room_id = $(subst /,_,$(ROOM))

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  JOBS=n parallel jobs (2); WERROR=ON warnings are errors"

.PHONY: setup
setup: ## install what building and testing need (Debian, Ubuntu)
	@scripts/setup

.PHONY: demo
DEMO_OPTIONS = --g1-blocks 1827 --g2-blocks 9139 --g3-blocks 36558 --block-bytes 16KiB --disk-dir build/demo
demo: setup ## build, then replay a generated trace, or TRACE=file, through the tiers
	@$(call build,release,kvbm)
	@mkdir -p build/demo
ifeq ($(TRACE),)
	build/release/apps/kvbm/kvbm trace generate --out build/demo/trace.jsonl
	build/release/apps/kvbm/kvbm replay build/demo/trace.jsonl $(DEMO_OPTIONS)
else
	build/release/apps/kvbm/kvbm replay "$${TRACE}" $(DEMO_OPTIONS)
endif

.PHONY: test
test: setup ## build and run every test, or ROOM=blocks: those of one room
ifeq ($(ROOM),)
	@$(call build,dev)
	@$(call ctest,dev)
else
	@$(call build,dev,kvbm_$(room_id)_tests)
	@$(call ctest,dev,-L '^$(room_id)$$')
endif

.PHONY: test-stub
test-stub: setup ## the build without CUDA: what differs in it, and the tests that tell
	@$(call build,stub)
	@$(call ctest,stub)

.PHONY: demo-vllm
demo-vllm: ## the real vLLM on this CPU with a tiny model: what kvbm saves, and that outputs are equal
	@scripts/setup_engine
	@build/engine/bin/python tests/engine/demo.py

.PHONY: test-engine
test-engine: ## the real vLLM on this CPU: outputs with kvbm equal those without
	@scripts/setup_engine
	@build/engine/bin/python -m pytest -q -n "$(JOBS)" tests/python tests/engine

.PHONY: bench
bench: setup ## run the benchmarks, on TRACE=file if given; results as JSON in build/bench/
	@$(call build,release,kvbm_bench)
	@mkdir -p build/bench
	$(if $(TRACE),KVBM_BENCH_TRACE="$${TRACE}") build/release/bench/kvbm_bench --benchmark_repetitions=3 \
	  --benchmark_out=build/bench/kvbm_bench.json --benchmark_out_format=json
	@scripts/bench_figures.py build/bench/kvbm_bench.json --json build/bench/figures.json

.PHONY: bench-vllm
bench-vllm: ## what kvbm adds to a step of the real vLLM; results as JSON in build/bench/
	@scripts/setup_engine
	@build/engine/bin/python bench/step_cost.py --json build/bench/step_cost.json

.PHONY: gpu-bundle
gpu-bundle: setup ## GPU tests and benchmarks in build/gpu-bundle/, for a machine without a compiler
	@$(call build,cuda,kvbm kvbench kvbm_gpu_tests kvbm_cuda_bench kvbm_kernels_bench)
	@scripts/make_gpu_bundle build/cuda build/gpu-bundle

.PHONY: lint
lint: ## format, layers, headers, documents, scripts, clang-tidy
	@scripts/setup lint
	@$(call build,dev,kvbm_lint)
	@$(call ctest,dev,-L '^lint$$')
	@scripts/run_tidy --build-dir build/dev --jobs $(JOBS)

.PHONY: format
format: ## reformat the sources in place
	@scripts/check_format --fix

.PHONY: asan
asan: setup ## the tests under the address and undefined-behaviour sanitizers
	@$(call build,asan)
	@$(call ctest,asan)

.PHONY: tsan
tsan: setup ## the tests under the thread sanitizer
	@$(call build,tsan)
	@$(call ctest,tsan)

.PHONY: coverage
coverage: ## line and branch coverage; report in build/coverage/report/
	@scripts/setup lint
	@$(call build,coverage)
	@find build/coverage -name '*.gcda' -delete
	@$(call ctest,coverage)
	@mkdir -p build/coverage/report
	gcovr --root . --filter src/ --exclude '.*_test\.cpp' --exclude-throw-branches -j $(JOBS) \
	  --html-details build/coverage/report/index.html --print-summary --txt build/coverage/report/summary.txt \
	  build/coverage

.PHONY: fuzz
fuzz: ## build the libFuzzer programs with clang into build/fuzz/fuzz/
	@scripts/setup lint
	@$(call build,fuzz)

.PHONY: clean
clean: ## remove build/
	@rm -rf build
