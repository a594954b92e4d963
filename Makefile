# Everything happens in .venv, which is made on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint format clean

# One snapshot to standard output: of the live table where this user can read
# it, else of the sample that ships with the project.
run: .venv/.ready
	@if [ -r /proc/net/nf_conntrack ]; then \
		echo "make: the live table, /proc/net/nf_conntrack" >&2; \
		$(BIN)/conntrack-textfile write; \
	else \
		echo "make: /proc/net/nf_conntrack cannot be read: the sample, tests/data/kernel-6.18" >&2; \
		$(BIN)/conntrack-textfile write --path.procfs=tests/data/kernel-6.18; \
	fi

test: .venv/.ready
	$(BIN)/python -m pytest

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
