#!/usr/bin/env bash
# What is built, on each of some Pythons, in clean environments; then the tests
# that are about Python and not about the machine. The oldest Python gets the
# oldest of what we depend on.
#   tests/pythons.sh UV PYTHON...
set -euo pipefail
uv=$1; shift
cd "$(dirname "$0")/.."
work=$PWD/build/pythons
rm -rf "$work"
first=yes
for python in "$@"; do
    version=$("$python" -c 'import platform; print(platform.python_version())')
    there=$work/$version
    mkdir -p "$there"
    : >"$there/constraints"
    if [ $first ]; then
        "$uv" pip compile --quiet --no-header --python "$python" --resolution lowest-direct \
            --extra web pyproject.toml --output-file "$there/constraints" >/dev/null
    fi
    first=
    "$uv" build --quiet --python "$python" --out-dir "$there/dist" .
    for file in "$there"/dist/*.{whl,tar.gz}; do
        rm -rf "$there/venv"
        "$uv" venv --quiet --python "$python" "$there/venv"
        "$uv" pip install --quiet --python "$there/venv" --constraint "$there/constraints" \
            "$file[web]"
        "$there/venv/bin/conntrack-textfile" write --path.procfs=tests/data/kernel-6.18 |
            grep -F "python=\"$version\",engine=\"compiled\""
    done
    "$uv" pip list --quiet --python "$there/venv"
    # The tests run on the checkout, whose engine is not that of this Python yet.
    cp -r conntrack_textfile completion docs tests man prometheus LICENSE README.md pyproject.toml setup.py "$there"
    (cd "$there" && rm -f conntrack_textfile/kernel/*.{so,c} &&
        "$uv" pip install --quiet --python venv --constraint constraints --editable '.[web]' \
            cython hypothesis pytest setuptools &&
        CONNTRACK_TEXTFILE_NO_SKIPS=1 venv/bin/python -m pytest -q tests/kernel tests/web \
            tests/test_{aggregate,cli,exposition,families,filters,imports,labels,logs}.py \
            tests/test_{networks,options,plan,protocols,services,snapshot,textfile}.py \
            tests/test_{top,units}.py)
done
