# spliff: every target sets up what it needs. `make demo` shows the main job, `make test` the tests.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.ready

.PHONY: installed compiled plain setup demo run test test-unit test-plain test-system test-vm prepare-vm check bench fuzz proto docs picture deb clean

setup: compiled

installed: $(STAMP)

$(STAMP): pyproject.toml packaging/setup.sh
	packaging/setup.sh $(VENV)
	touch $(STAMP)

# The modules that every record passes through; does nothing while they fit their sources.
compiled: $(STAMP)
	@$(PY) packaging/hot.py

plain:
	$(PY) packaging/hot.py --remove

demo: compiled
	$(PY) -m tests.demo

run: compiled
	$(BIN)/spliffd

# What measures or traces has the machine for itself; the others share it.
test: test-unit test-plain test-system

SHARED := -n 3 --dist worksteal

test-unit: compiled
	$(BIN)/pytest -q $(SHARED) tests/unit

# The sources of what is compiled.
test-plain: compiled
	SPLIFF_PURE=1 $(BIN)/pytest -q $(SHARED) tests/unit/protocols tests/unit/correlation tests/unit/worker tests/unit/api

test-system: compiled
	$(BIN)/pytest --durations=40 tests/kernel tests/system

# The package under a real systemd, on older kernels, in virtual machines: see tests/vm.
test-vm: compiled
	$(PY) -m tests.vm $(if $(WITHIN),--within $(WITHIN)) $(KERNELS)

# The images, which test-vm would make first, and keeps.
prepare-vm: $(STAMP)
	$(PY) -m tests.vm --prepare $(KERNELS)

check: $(STAMP)
	packaging/check.sh $(BIN)

bench: compiled
	$(PY) -m bench

fuzz: $(STAMP)
	packaging/fuzz.sh $(PY)

proto: $(STAMP)
	packaging/proto.sh $(BIN)

docs: $(STAMP)
	PYTHONPATH=. $(PY) packaging/docs.py
	$(PY) packaging/grafana/dashboard.py

# The README's picture of the dashboard, drawn from what a real Prometheus scraped; wants matplotlib.
picture: compiled
	$(BIN)/pip install --quiet matplotlib
	$(PY) -m tests.picture

deb: compiled
	packaging/deb/build.sh $(BIN)

clean: plain
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
