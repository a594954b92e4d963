# Everything happens in .venv, which is made on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint format bench fuzz asan generated man completion docs pythons clean

# One snapshot to standard output: of the live table where this user can read
# it, else of the sample that ships with the project. Without the tools of development
# it needs little, and does not compile: .venv-run.
RUN := $(if $(wildcard .venv/.ready),.venv,.venv-run)
run: $(RUN)/.ready
	@if $(RUN)/bin/python -m conntrack_textfile write 2>$(RUN)/run.log; then \
		cat $(RUN)/run.log >&2; \
		echo "make: this is the live table" >&2; \
	else \
		cat $(RUN)/run.log >&2; \
		echo "make: so this is the sample, tests/data/kernel-6.18" >&2; \
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

# Figures of docs/figures.md: takes minutes, and as root a table of a million entries.
bench: .venv/.ready
	$(BIN)/python tests/bench.py

# Both engines on mutated input, a minute guided by coverage.
fuzz: .venv/.ready
	$(BIN)/pip install --quiet atheris
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/fuzz_engines.py --atheris -max_total_time=60 -max_len=2000 -print_final_stats=1

# The compiled engine under AddressSanitizer, on the captures and damage done to them.
asan: .venv/.ready
	rm -rf build/asan
	CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -O1 -g" \
		$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/asan .
	grep -q __asan_init build/asan/conntrack_textfile/kernel/_speedups.*.so
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH=build/asan:$(CURDIR) \
		$(BIN)/python tests/fuzz_engines.py --seconds=20

# What is made of the usage text and the families, after a change of these.
generated: man completion

man: .venv/.ready
	$(BIN)/python man/make.py >man/conntrack-textfile.1

completion: .venv/.ready
	$(BIN)/python completion/make.py completion

# The pages in docs as a site in build/site, with the tables as the code is now.
docs: .venv/.ready
	$(BIN)/python docs/tables.py
	@# Without the advertisement of the theme's makers.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What is built, and the tests, on every Python that we support.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
pythons: .venv/.ready
	bash tests/pythons.sh $(CURDIR)/$(BIN)/uv $(PYTHONS)

clean:
	rm -rf .venv .venv-run

include packaging/install.mk packaging/dist.mk

.venv-run/.ready: packaging/constraints.txt
	@echo "make: installing three packages into .venv-run, once" >&2
	@$(PYTHON) -m venv .venv-run
	@.venv-run/bin/pip install --quiet --disable-pip-version-check \
		--constraint packaging/constraints.txt docopt-ng prometheus-client tenacity >&2
	@touch $@

.venv/.ready: pyproject.toml $(wildcard conntrack_textfile/kernel/*.p[yx][xi])
	@# What it says goes to standard error, since standard output is that of what is run.
	@echo "make: installing the tools of development into .venv, once" >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --editable '.[dev]' >&2
	@touch $@
