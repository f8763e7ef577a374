# spliff: every target sets up what it needs. `make demo` shows the main job, `make test` the tests.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.ready

.PHONY: setup demo run test check bench fuzz proto docs deb clean

setup: $(STAMP)

$(STAMP): pyproject.toml packaging/setup.sh
	packaging/setup.sh $(VENV)
	touch $(STAMP)

demo: $(STAMP)
	$(PY) -m tests.demo

run: $(STAMP)
	$(BIN)/spliffd

test: $(STAMP)
	$(BIN)/pytest

check: $(STAMP)
	packaging/check.sh $(BIN)

bench: $(STAMP)
	$(PY) -m bench

fuzz: $(STAMP)
	packaging/fuzz.sh $(PY)

proto: $(STAMP)
	packaging/proto.sh $(BIN)

docs: $(STAMP)
	$(PY) packaging/docs.py

deb: $(STAMP)
	packaging/deb/build.sh $(BIN)

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
