# make tune   set up, tune deepseek-r1 for the GPU here (none: gfx950, predicted), emit, import and verify the pack
# make test   set up and run the tests, on the GPU where there is one
# make test-vllm   install vLLM 0.33 for the CPU into .venv-vllm and test the pack in it
# make lint   formatting, lint and types
#
# PYTHON=... names the interpreter that .venv is made from. If it has torch already, .venv uses that torch and
# its triton (a ROCm or CUDA build, say); otherwise the versions of constraints.txt are installed.

PYTHON ?= python3
MODEL ?= deepseek-r1
BIN := .venv/bin
BUILD := build
PYTEST_WORKERS ?= auto
AITER ?= amd-aiter==0.1.7.post2.dev18

.PHONY: setup tune test test-vllm lint format clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt scripts/setup_venv.py
	$(PYTHON) scripts/setup_venv.py .venv
	@touch $@

tune: setup
	$(BIN)/tunegen tune --model $(MODEL) --out $(BUILD)/tuned_configs --storage sqlite:///$(BUILD)/studies.sqlite3
	$(BIN)/tunegen emit --configs $(BUILD)/tuned_configs --out $(BUILD)/pack
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --disable-pip-version-check $(BUILD)/pack
	$(BIN)/tunegen verify --pack tunegen_ops

# AITER's Triton kernels, as an oracle of the tests: beside what is installed, so that nothing else finds it there.
.venv/aiter: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --upgrade --target $@ $(AITER)
	@touch $@

test: setup .venv/aiter
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --aiter-root $(CURDIR)/.venv/aiter tests

.venv-vllm/ready: .venv/ready scripts/setup_vllm_venv.py
	$(BIN)/python scripts/setup_vllm_venv.py .venv-vllm
	@touch $@

test-vllm: .venv-vllm/ready
	.venv-vllm/bin/python -m pytest tests_vllm

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-vllm $(BUILD)
