# The environment is a plain venv in .venv with the versions of constraints.txt, which the tests last passed with.
PYTHON ?= python3
PYTHON_NEWEST ?= python3.13 python3.12
VENV := .venv
NEWEST := .venv-newest
# Each worker takes a part of the tests, and then from those who have more left; some 2 GB each.
IN_PARALLEL := --numprocesses logical --maxprocesses 4 --dist worksteal -m "not slow"
DOCTESTS := --quiet --doctest-modules --ignore-glob="*/triton_*.py" src
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(PIP_INSTALL) --constraint constraints.txt

INTERPRETER = $(or $(shell scripts/find_python.sh $(PYTHON)),$(PYTHON))
INTERPRETER_NEWEST = $(shell scripts/find_python.sh $(PYTHON_NEWEST))
# "--clear" if an environment has not the Python that is asked for, which makes it anew
clear = $(shell [ "$$($(1)/bin/python -V 2>&1)" = "$$($(2) -V 2>&1)" ] || echo --clear)
ifneq ($(origin PYTHON),file)
ANEW := $(call clear,$(VENV),$(INTERPRETER))
endif

.PHONY: demo test test-slow test-newest lint docs environment clean anew

demo: environment ## embed real cells with the built-in model: tahoe-demo.png, tahoe-demo.h5ad
	$(BIN)/tahoe demo

test: $(VENV)/.test ## run the tests
	$(BIN)/python -m pytest $(IN_PARALLEL)
	$(BIN)/python -m pytest $(DOCTESTS)

test-slow: $(VENV)/.test ## run the tests that `make test` leaves out
	$(BIN)/python -m pytest -m slow

test-newest: ## run the tests with the newest Python and the newest releases of everything, in .venv-newest
	@test -n "$(INTERPRETER_NEWEST)" || { echo "none of $(PYTHON_NEWEST) is here; PYTHON_NEWEST= names another" >&2; exit 1; }
	$(INTERPRETER_NEWEST) -m venv $(call clear,$(NEWEST),$(INTERPRETER_NEWEST)) $(NEWEST)
	$(NEWEST)/bin/python $(PIP_INSTALL) --upgrade pip
	$(NEWEST)/bin/python $(PIP_INSTALL) --upgrade --upgrade-strategy eager --editable ".[leiden]" --group test
	$(NEWEST)/bin/python -m pytest $(IN_PARALLEL)
	$(NEWEST)/bin/python -m pytest $(DOCTESTS)

lint: $(VENV)/.lint ## style, types, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.doc ## build the documentation, offline, warnings being errors
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

environment: $(VENV)/.environment

# torch comes first and alone: another package's open range would pull a build with CUDA.
$(VENV)/.environment: pyproject.toml constraints.txt $(if $(ANEW),anew)
	$(INTERPRETER) -m venv $(ANEW) $(VENV)
	$(PIP) --upgrade pip
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable ".[leiden]"
	touch $@

$(VENV)/.%: $(VENV)/.environment
	$(PIP) --group $*
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) docs/_build tahoe-demo.png tahoe-demo.h5ad
