# "make install" and "make uninstall", also used to build packages.
#
# The code and its dependencies are in PREFIX/lib/conntrack-textfile, separate from the
# packages of the system's Python. The command is PREFIX/bin/conntrack-textfile.

PREFIX ?= /usr/local
# With DESTDIR, files are installed there and no unit is started: for building packages.
DESTDIR ?=
# Whether to install the systemd units.
SYSTEMD ?= $(if $(wildcard /run/systemd/system),yes,no)

# The unit path of systemd: under /usr and /usr/local, otherwise /etc.
LIB := $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib,/etc)
UNITDIR ?= $(LIB)/systemd/system
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions

NAME := conntrack-textfile
PRIVATE := $(PREFIX)/lib/$(NAME)
SHARE := $(PREFIX)/share/$(NAME)
DOC := $(PREFIX)/share/doc/$(NAME)
UNITS := $(notdir $(wildcard systemd/*.service systemd/*.socket systemd/*.timer))
SETTINGS := $(notdir $(wildcard systemd/default/*))
CONFIGURATION := sysusers tmpfiles sysctl modules-load
# Directories that "make install" may have created, innermost first: removed if empty.
DIRECTORIES = $(DOC) $(UNITDIR) $(dir $(UNITDIR)) $(CONFIGURATION:%=$(LIB)/%.d) $(ZSHDIR) \
	$(PREFIX)/share/zsh $(PREFIX)/share/fish/vendor_completions.d $(PREFIX)/share/fish \
	$(PREFIX)/share/bash-completion/completions $(PREFIX)/share/bash-completion \
	$(PREFIX)/share/man/man1 $(PREFIX)/share/doc \
	$(if $(filter /usr /usr/local,$(PREFIX)),,$(PREFIX)/share/man)

# The Python of the system unless PYTHON= is given: the units cannot access one in a home
# directory. For the Python of a virtual environment, its base interpreter.
SYSTEM_PYTHON := $(if $(filter file,$(origin PYTHON)),$(or $(wildcard /usr/bin/python3),$(PYTHON)),$(PYTHON))
INTERPRETER = $$($(SYSTEM_PYTHON) -c 'import sys; print(sys._base_executable)')

.PHONY: site install uninstall activate deactivate deactivate-cron

# Build tools have pinned versions. pip passes PIP_CONSTRAINT on to its build environment.
VENV_PIP := build/venv/bin/pip --disable-pip-version-check
site sdist wheels: export PIP_CONSTRAINT := $(CURDIR)/packaging/constraints.txt

# The code and its dependencies, as unpacked wheels. #! lines of modules are removed: they
# name an interpreter that may not exist.
site:
	@$(call recent,$(SYSTEM_PYTHON))
	rm -rf build/site build/wheels
	$(SYSTEM_PYTHON) -m venv --clear build/venv
	$(VENV_PIP) wheel --quiet --wheel-dir build/wheels .
	mkdir build/site
	for wheel in build/wheels/*.whl; do $(SYSTEM_PYTHON) -m zipfile -e "$$wheel" build/site; done
	rm -rf build/site/*.data build/site/*.dist-info/RECORD
	find build/site -name '*.py' -exec sed -i '1{/^#!/d}' {} +
	@echo "make: $$(ls build/site/conntrack_textfile/kernel/*.so >/dev/null 2>&1 \
		&& echo 'built with the compiled engine' \
		|| echo 'built with the pure engine only: the compiled one needs a C compiler and the headers of Python')"

install: site
	umask 022; mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PRIVATE).new
	cp -R build/site/. $(DESTDIR)$(PRIVATE).new
	chmod -R u=rwX,go=rX $(DESTDIR)$(PRIVATE).new
	rm -rf $(DESTDIR)$(PRIVATE)
	mv $(DESTDIR)$(PRIVATE).new $(DESTDIR)$(PRIVATE)
	$(SYSTEM_PYTHON) -m compileall -q -s "$(DESTDIR)" -p / $(DESTDIR)$(PRIVATE)
	sed -e "s|@PYTHON@|$(INTERPRETER)|" -e "s|@PRIVATE@|$(PRIVATE)|" packaging/$(NAME).in \
		>build/launcher
	install -m 755 build/launcher $(DESTDIR)$(PREFIX)/bin/$(NAME)
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 man/$(NAME).1
	install -D -m 644 -t $(DESTDIR)$(SHARE) prometheus/*.yml grafana/conntrack.json
	install -D -m 644 -t $(DESTDIR)$(DOC) README.md CHANGELOG.md
	install -D -m 644 -t $(DESTDIR)$(DOC)/docs docs/*.md docs/*.png
	install -D -m 644 cron/$(NAME) $(DESTDIR)$(DOC)/examples/cron
	install -D -m 644 completion/$(NAME).bash \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/$(NAME)
	install -D -m 644 -t $(DESTDIR)$(ZSHDIR) completion/_$(NAME)
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d completion/$(NAME).fish
ifeq ($(SYSTEMD),yes)
	mkdir -p $(DESTDIR)$(UNITDIR)
	for unit in $(UNITS); do \
		sed "s|/usr/local/bin/|$(PREFIX)/bin/|" systemd/$$unit >$(DESTDIR)$(UNITDIR)/$$unit; \
		chmod 644 $(DESTDIR)$(UNITDIR)/$$unit; \
	done
	for d in $(CONFIGURATION); do \
		install -D -m 644 -t $(DESTDIR)$(LIB)/$$d.d systemd/$$d.d/$(NAME).conf; \
	done
	for file in $(SETTINGS); do \
		test -e $(DESTDIR)/etc/default/$$file || \
			install -D -m 644 -t $(DESTDIR)/etc/default systemd/default/$$file; \
	done
	$(if $(DESTDIR),,$(MAKE) --no-print-directory activate)
endif

# Failures marked "-" are reported and not fatal: a container has no modules, and "write"
# reports what is missing. Only two settings of sysctl.d: others may have been changed by
# hand since boot.
activate:
	systemd-sysusers $(NAME).conf
	systemd-tmpfiles --create $(NAME).conf
	-test -e /proc/sys/net/netfilter/nf_conntrack_acct || modprobe nf_conntrack
	-$(firstword $(wildcard /usr/lib/systemd/systemd-sysctl /lib/systemd/systemd-sysctl)) \
		--prefix=/net/netfilter/nf_conntrack_acct \
		--prefix=/net/netfilter/nf_conntrack_timestamp
	systemctl daemon-reload
	systemctl try-restart conntrack-exporter.service
	systemctl enable --now $(NAME).timer
	-systemctl start $(NAME).service

deactivate:
	-systemctl stop '$(NAME)*' 'conntrack-exporter*' 'conntrack-events*'
	-systemctl disable --quiet $(UNITS)
	-systemctl clean --what=runtime $(NAME).service conntrack-exporter.service
	-systemctl reset-failed '$(NAME)*' 'conntrack-exporter*' 'conntrack-events*'

# Reverts the steps for cron in docs/write.md. The line goes first, then the last run ends.
CRON := /etc/cron.d/$(NAME)
PUBLISHED := /var/lib/prometheus/node-exporter/conntrack.prom
deactivate-cron:
	if [ -e $(CRON) ]; then \
		rm $(CRON); \
		flock /run/$(NAME).lock true; \
		test ! -L $(PUBLISHED) || rm $(PUBLISHED); \
		rm -rf /var/lib/$(NAME) /run/$(NAME).lock; \
		! getent passwd conntrack-metrics >/dev/null || userdel conntrack-metrics; \
	fi

# Removes everything, including settings.
uninstall:
	$(if $(DESTDIR),,$(MAKE) --no-print-directory deactivate-cron)
ifeq ($(SYSTEMD),yes)
	$(if $(DESTDIR),,$(MAKE) --no-print-directory deactivate)
	cd $(DESTDIR)$(UNITDIR) && rm -f $(UNITS)
	rm -f $(foreach d,$(CONFIGURATION),$(DESTDIR)$(LIB)/$d.d/$(NAME).conf)
	rm -f $(addprefix $(DESTDIR)/etc/default/,$(SETTINGS))
	$(if $(DESTDIR),,systemctl daemon-reload)
	$(if $(DESTDIR),,rm -rf /var/lib/$(NAME))
	$(if $(DESTDIR),,! getent group conntrack-metrics >/dev/null || groupdel conntrack-metrics)
endif
	rm -rf $(DESTDIR)$(PRIVATE) $(DESTDIR)$(SHARE) $(DESTDIR)$(DOC)
	rm -f $(DESTDIR)$(PREFIX)/bin/$(NAME) $(DESTDIR)$(PREFIX)/share/man/man1/$(NAME).1 \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/$(NAME) \
		$(DESTDIR)$(ZSHDIR)/_$(NAME) \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/$(NAME).fish
	for d in $(DIRECTORIES); do \
		test ! -d $(DESTDIR)$$d || rmdir --ignore-fail-on-non-empty $(DESTDIR)$$d; \
	done
