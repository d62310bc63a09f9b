# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Modules are compiled as they are imported, and kept: the installer would compile 20,000 files, most of them for nothing.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test zoo lint types docs notebooks screenshots site clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/djpq-nncf demo

# Two workers of one thread each: tests are small, and threads of the workers would fight over the cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Every architecture as published, and docs/architectures.md from what was measured: takes an hour.
zoo: $(INSTALLED)
	rm -rf runs/zoo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/zoo --zoo=full -n 2
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo docs/architectures.md

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python -m djpq_nncf.config docs/configuration.md

# CI=1: without progress, which would stay in their outputs.
notebooks: $(INSTALLED)
	CI=1 OMP_NUM_THREADS=1 $(BIN)/jupyter-nbconvert --to notebook --inplace --execute docs/notebooks/*.ipynb

# Pictures of the report and of the progress, of a run that takes two minutes.
screenshots: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.report.screenshots docs/images

site: $(INSTALLED)
	$(BIN)/python -m mkdocs build

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache runs site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
