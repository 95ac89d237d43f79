# The environment is a plain venv in .venv with the versions of constraints.txt, which the tests last passed with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint docs environment clean

demo: environment ## embed real cells with the built-in model: tahoe-demo.png, tahoe-demo.h5ad
	$(BIN)/tahoe demo

test: $(VENV)/.test ## run the tests
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest --quiet --doctest-modules src

lint: $(VENV)/.lint ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.doc ## build the documentation, offline, warnings being errors
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

environment: $(VENV)/.environment

# torch comes first and alone: another package's open range would pull a build with CUDA.
$(VENV)/.environment: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable ".[leiden]"
	touch $@

$(VENV)/.%: $(VENV)/.environment
	$(PIP) --group $*
	touch $@

clean:
	rm -rf $(VENV) docs/_build tahoe-demo.png tahoe-demo.h5ad
