# What a person does with a checkout; each target makes the environment that it needs, once.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Workers for the tests; more than two only helps where there are as many cores.
WORKERS ?= 2

.PHONY: demo test check bench format clean

demo: $(VENV)/.installed
	@$(VENV)/bin/trapline demo

test: $(VENV)/.installed-for-tests
	@WORKERS=$(WORKERS) scripts/test $(RUN) $(TESTS)

check: $(VENV)/.installed-for-tests
	@scripts/check $(RUN)

bench: $(VENV)/.installed
	@$(RUN) -m benchmarks

format: $(VENV)/.installed-for-tests
	@$(RUN) -m ruff check --fix . && $(RUN) -m ruff format .

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.installed: pyproject.toml
	@scripts/environment $(PYTHON) $(VENV) .
	@touch $@

$(VENV)/.installed-for-tests: pyproject.toml
	@scripts/environment $(PYTHON) $(VENV) '.[test]'
	@touch $@ $(VENV)/.installed
