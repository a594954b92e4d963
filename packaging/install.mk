# Installing into a system, and what packages are made of: "make install" and "make uninstall".
#
# One directory holds the command's code and what it depends on, beside the Python of
# the system and out of the way of its packages: PREFIX/lib/conntrack-textfile. The
# command in PREFIX/bin starts that.

PREFIX ?= /usr/local
# With DESTDIR the files are put there and nothing is started: for those who make packages.
DESTDIR ?=
# With the units of systemd, or the cron file alone.
SYSTEMD ?= $(if $(wildcard /run/systemd/system),yes,no)

# Where systemd looks: under /usr and /usr/local, or else in /etc.
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
# Those that a system need not have, innermost first: without our files they may be empty.
DIRECTORIES = $(DOC) $(UNITDIR) $(dir $(UNITDIR)) $(CONFIGURATION:%=$(LIB)/%.d) $(ZSHDIR) \
	$(PREFIX)/share/zsh $(PREFIX)/share/fish/vendor_completions.d $(PREFIX)/share/fish \
	$(PREFIX)/share/bash-completion/completions $(PREFIX)/share/bash-completion \
	$(PREFIX)/share/man/man1 $(PREFIX)/share/doc \
	$(if $(filter /usr /usr/local,$(PREFIX)),,$(PREFIX)/share/man)

# That of the system, if no other is asked for: one in a home is out of reach for the
# units. And where it is one of a virtual environment, that which this was made of.
SYSTEM_PYTHON := $(if $(filter file,$(origin PYTHON)),$(or $(wildcard /usr/bin/python3),$(PYTHON)),$(PYTHON))
INTERPRETER = $$($(SYSTEM_PYTHON) -c 'import sys; print(sys._base_executable)')

.PHONY: site install uninstall activate deactivate deactivate-cron

# The build and its tools have versions that are known; for its own tools see PIP_CONSTRAINT,
# which pip hands on to the environment that it builds in.
VENV_PIP := build/venv/bin/pip --disable-pip-version-check
site sdist wheels: export PIP_CONSTRAINT := $(CURDIR)/packaging/constraints.txt

# The code and what it depends on, as wheels and unpacked. Some modules say how they
# would be started as a script, by a Python that need not be there.
site:
	rm -rf build/site build/wheels
	$(SYSTEM_PYTHON) -m venv --clear build/venv
	$(VENV_PIP) wheel --quiet --wheel-dir build/wheels .
	mkdir build/site
	for wheel in build/wheels/*.whl; do $(SYSTEM_PYTHON) -m zipfile -e "$$wheel" build/site; done
	rm -rf build/site/*.data build/site/*.dist-info/RECORD
	find build/site -name '*.py' -exec sed -i '1{/^#!/d}' {} +
	@echo "make: $$(ls build/site/conntrack_textfile/kernel/*.so >/dev/null 2>&1 \
		&& echo 'the compiled engine' \
		|| echo 'the pure engine alone: a C compiler and the headers of Python make the compiled one')"

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

# What is not to be had is said, and is no failure: a container has no modules, and "write"
# itself says what it lacks. Of sysctl.d our two settings alone: others may have been set
# by hand since boot.
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

# Of cron, what docs/write.md has an administrator do. First the line, then its last run.
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

# All of it, the settings too.
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
