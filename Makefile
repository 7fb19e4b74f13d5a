# make demo: the whole path on synthetic scans.  make test, make test-long, make check: what CI runs.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-long check docs notebooks clean help

help:
	@echo "make demo        synthetic archive -> index -> cache -> pretraining -> benchmark -> report, in demo/"
	@echo "make test        tests that take under 10 minutes on 2 cores"
	@echo "make test-long   the others"
	@echo "make check       formatting, lint, types"
	@echo "make docs        the documentation as a site that opens from the disk, in site/"
	@echo "make notebooks   tutorials/notebooks/ from the scripts in tutorials/"
	@echo "make clean       removes the caches of tools, builds, site/, demo/ and tutorial_out/; keeps .venv"

.venv: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@test ! -e demo || { echo "demo/ is there already: open demo/report/report.html, or remove the folder to run again" >&2; exit 2; }
	$(BIN)/lejepa-med demo --out demo
	@echo "open demo/report/report.html"

# One thread per worker: two workers with two threads each would wait for each other.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n $(WORKERS)

# 5 is pytest's exit code for "no tests".
test-long: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n $(WORKERS) || test $$? -eq 5

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

DOCS_STAMP := .venv/.docs-installed

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install -e ".[docs]"
	@touch $@

# Warnings are errors (mkdocs.yml), and so is anything that a page would fetch.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --clean
	$(BIN)/python docs/check_offline.py site

notebooks: $(STAMP)
	$(BIN)/python tutorials/notebooks.py

clean:
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis demo tutorial_out
	find . -name __pycache__ -type d -not -path "./.venv/*" -prune -exec rm -rf {} +
