# Development happens in .venv, which is created on first use.
PYTHON ?= python3
BIN := .venv/bin

# Fails with one line where a Python is too old, in place of pages of pip.
recent = $(1) -c 'import sys; v = sys.version_info[:2]; v >= (3, 10) or sys.exit("make: Python 3.10 or later is needed, and %s is %d.%d: PYTHON= names another" % ((sys.executable,) + v))'

.PHONY: run test lint format bench fuzz asan generated man completion docs pythons clean

# One snapshot to standard output: of the live table if this user can read it, otherwise
# of the sample in tests/data. .venv-run has no development tools and no compiled engine.
RUN := $(if $(wildcard .venv/.ready),.venv,.venv-run)
run: $(RUN)/.ready
	@if $(RUN)/bin/python -m conntrack_textfile write 2>$(RUN)/run.log; then \
		cat $(RUN)/run.log >&2; \
		echo "make: this is the live table" >&2; \
	else \
		cat $(RUN)/run.log >&2; \
		echo "make: this is the sample in tests/data/kernel-6.18" >&2; \
		$(RUN)/bin/python -m conntrack_textfile write --path.procfs=tests/data/kernel-6.18; \
	fi

test: .venv/.ready
	$(BIN)/python -m pytest --cov

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The figures of docs/figures.md. Takes minutes; as root it creates a million entries.
bench: .venv/.ready
	$(BIN)/python tests/bench.py

# Coverage-guided fuzzing of both engines, for a minute.
fuzz: .venv/.ready
	$(BIN)/pip install --quiet atheris
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/fuzz_engines.py --atheris -max_total_time=60 -max_len=2000 -print_final_stats=1

# The compiled engine under AddressSanitizer and UBSan, on captures and mutations of them.
asan: .venv/.ready
	rm -rf build/asan
	CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g" \
		$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/asan .
	grep -q __asan_init build/asan/conntrack_textfile/kernel/_speedups.*.so
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH=build/asan:$(CURDIR) \
		$(BIN)/python tests/fuzz_engines.py --seconds=20

# The manual page and the completion, from the usage text and the metric families.
generated: man completion

man: .venv/.ready
	$(BIN)/python man/make.py >man/conntrack-textfile.1

completion: .venv/.ready
	$(BIN)/python completion/make.py completion

# The documentation as a site in build/site, after an update of its tables from the code.
docs: .venv/.ready
	$(BIN)/python docs/tables.py
	@# Suppresses an advertisement of mkdocs-material.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Builds and tests on every supported version of Python.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
pythons: .venv/.ready
	bash tests/pythons.sh $(CURDIR)/$(BIN)/uv $(PYTHONS)

clean:
	rm -rf .venv .venv-run

include packaging/install.mk packaging/dist.mk

.venv-run/.ready: packaging/constraints.txt
	@$(call recent,$(PYTHON))
	@echo "make: installing three packages into .venv-run, once" >&2
	@$(PYTHON) -m venv .venv-run
	@.venv-run/bin/pip install --quiet --disable-pip-version-check \
		--constraint packaging/constraints.txt docopt-ng prometheus-client tenacity >&2
	@touch $@

.venv/.ready: pyproject.toml $(wildcard conntrack_textfile/kernel/*.p[yx][xi])
	@$(call recent,$(PYTHON))
	@# Messages go to standard error: standard output is that of the program.
	@echo "make: installing the development tools into .venv, once" >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --editable '.[dev]' >&2
	@touch $@
