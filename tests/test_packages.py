"""Builds: wheels with and without a C compiler, and the sdist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from conntrack_textfile import families
from conntrack_textfile.options import usage
from tests.conftest import DATA, need

ROOT = Path(__file__).parent.parent
SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"
QUICK = {"CFLAGS": "-O0 -g0"}  # to compile
NOT_OURS = shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so", "*.c", "__pycache__")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy without the files of earlier builds."""
    return Path(shutil.copytree(ROOT, tmp_path / "checkout", ignore=NOT_OURS))


def run_build(
    hook: str, checkout: Path, *before: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Build in a checkout with the backend that pyproject.toml names."""
    pytest.importorskip("Cython")
    code = f"import setuptools.build_meta as b; print(b.{hook}('dist'))"
    done = subprocess.run(
        [*before, sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, **QUICK, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def build(hook: str, checkout: Path, **env: str) -> Path:
    """Build, and return the path of the result."""
    return checkout / "dist" / run_build(hook, checkout, **env).stdout.splitlines()[-1]


def write_with(wheel: Path, where: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(where)
    done = subprocess.run(
        # -S: without the finder of an editable installation.
        [sys.executable, "-S", "-m", "conntrack_textfile", "write", SAMPLE],
        cwd=where,
        env={**os.environ, "PYTHONPATH": f"{where}:{sysconfig.get_path('purelib')}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_wheel_has_the_compiled_engine_and_not_its_source(checkout: Path) -> None:
    need("gcc")
    wheel = build("build_wheel", checkout)
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith(".so") for name in names)
    assert not any(name.endswith((".pyx", ".pxi", ".c")) for name in names)
    shared = {name.partition(".data/data/share/")[2] for name in names}
    assert {
        "man/man1/conntrack-textfile.1",
        "bash-completion/completions/conntrack-textfile.bash",
        "zsh/site-functions/_conntrack-textfile",
        "fish/vendor_completions.d/conntrack-textfile.fish",
    } <= shared
    assert {"conntrack_textfile/py.typed", "conntrack_textfile/kernel/_speedups.pyi"} <= set(names)
    assert 'engine="compiled"' in write_with(wheel, checkout.parent / "site")


def test_a_build_without_a_compiler_does_not_package_an_earlier_extension(checkout: Path) -> None:
    need("gcc")
    kernel = checkout / "conntrack_textfile" / "kernel"
    said = run_build("build_editable", checkout).stderr
    assert "this build has the compiled engine" in said
    assert list(kernel.glob("*.so"))
    with (kernel / "_speedups.pyx").open("a") as source:
        source.write("\n# Changed.\n")
    for hook in ("build_wheel", "build_editable"):
        wheel = build(hook, checkout, CC="/bin/false")
        assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
        # A wheel leaves the tree to the installation that it may be.
        assert bool(list(kernel.glob("*.so"))) == (hook == "build_wheel")


def test_a_rebuild_compiles_the_changed_source(checkout: Path) -> None:
    need("gcc")
    build("build_wheel", checkout)
    source = checkout / "conntrack_textfile" / "kernel" / "_speedups.pyx"
    status = source.stat()
    with source.open("a") as file:
        file.write("\nADDED = 1\n")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a checkout may leave it
    where = checkout.parent / "site"
    with zipfile.ZipFile(build("build_wheel", checkout)) as archive:
        archive.extractall(where)
    code = "from conntrack_textfile.kernel import _speedups; print(_speedups.ADDED)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=where, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_a_pure_build_reports_the_reason(checkout: Path) -> None:
    need("gcc", "unshare", root=True)
    include = sysconfig.get_path("include")
    without = ("unshare", "-m", "sh", "-euc", 'mount -t tmpfs none "$0"; exec "$@"', include)
    for before, cc, why in (
        ((), "/bin/false", "the C compiler (/bin/false) failed"),
        ((), "no-such-cc -O", "there is no C compiler (no-such-cc)"),
        (without, "gcc", f"the headers of Python are missing ({include}/Python.h"),
    ):
        said = run_build("build_wheel", checkout, *before, CC=cc).stderr
        assert why in said
        assert "this build has only the pure engine" in said


def test_without_a_compiler_there_is_a_pure_wheel_that_works(checkout: Path) -> None:
    wheel = build("build_wheel", checkout, CC="/bin/false")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
    text = write_with(wheel, checkout.parent / "site")
    assert 'engine="pure"' in text
    assert "conntrack_total_connections 91\n" in text


def test_the_sdist_has_the_source_of_the_compiled_engine(checkout: Path) -> None:
    with tarfile.open(build("build_sdist", checkout)) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    engine = {str(file.relative_to(checkout)) for file in checkout.rglob("*.p[yx][xi]")}
    assert len(engine) > 2
    assert engine | {"LICENSE", "pyproject.toml"} <= set(names)


@pytest.mark.parametrize("target", ["run", ".venv/.ready", "install", "site"])
def test_a_python_that_is_too_old_is_named(checkout: Path, tmp_path: Path, target: str) -> None:
    need("make")
    old = tmp_path / "python"
    code = "import sys; sys.version_info = (3, 9, 18); exec(sys.argv[1])"
    old.write_text(f"#!/bin/sh\n[ $1 = -c ] && exec {sys.executable} -c '{code}' \"$2\"\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", target, f"PYTHON={old}"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first.startswith("make: Python 3.10 or later is needed, and ")
    assert first.endswith(" is 3.9: PYTHON= names another")
    assert last.startswith("make: *** ")
    assert not (checkout / ".venv-run").exists()


def test_make_run_in_a_clone_is_quick_and_small(checkout: Path) -> None:
    need("make")
    runs = [
        subprocess.run(
            ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "make", "run"],  # not as a part of make
            cwd=checkout,
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    ]
    assert runs[0].stderr.startswith("make: installing three packages into .venv-run, once\n")
    assert "installing" not in runs[1].stderr
    for run in runs:  # nothing but metrics, whichever table it was
        assert re.match(r"# HELP conntrack_textfile_build_info ", run.stdout)
        assert re.search(r"^conntrack_total_connections \d+$", run.stdout, re.MULTILINE)
        assert all(re.match(r"# |conntrack_", line) for line in run.stdout.splitlines())
    files = [file.lstat() for file in (checkout / ".venv-run").rglob("*")]
    assert sum(status.st_blocks * 512 for status in files) < 60_000_000


def test_the_manual_page_is_up_to_date() -> None:
    code = compile((ROOT / "man" / "make.py").read_text(), "make.py", "exec")
    names: dict[str, Any] = {"__name__": "make"}
    exec(code, names)
    page = (ROOT / "man" / "conntrack-textfile.1").read_text()
    assert page == names["page"]()  # else: make man
    described = [
        (heading, re.split("[ =]", term)[0])
        for heading in names["headings"]()
        for term, _ in names["entries"](names["section"](heading))
    ]
    commands = ("write", "serve", "top", "check")
    assert described[:4] == [("Commands", command) for command in commands]
    options = {(heading, option) for heading, option in described[4:]}
    assert len(options) == len(described) - 4
    assert {option for _, option in options} == set(
        re.findall(r"^  (--?[\w.-]+)", usage(*commands), re.MULTILINE)
    )
    assert ("Write options", "--file.mode") in options
    assert ("Serve options", "--collector.interval") in options
    assert ("Top options", "--collector.interval") in options
    assert ("Options", "--limit.keys") in options


def test_the_manual_page_has_all_sections_and_metrics() -> None:
    page = (ROOT / "man" / "conntrack-textfile.1").read_text().replace("\\-", "-")
    parts = dict(re.findall(r'^\.SH "?(.*?)"?\n(.*?)(?=^\.SH |\Z)', page, re.MULTILINE | re.DOTALL))
    examples = usage("write", "serve", "top", "check").partition("\nExamples:\n")[2]
    for line in examples.splitlines():
        assert f"\n{line.strip()}\n" in parts["EXAMPLES"]
    names = {
        row.name
        for table in vars(families).values()
        if isinstance(table, tuple)
        for row in table
        if isinstance(row, (families.Family, families.GroupFamily))
    }
    assert len(names) > 40
    for name in names:
        assert re.search(rf"^\.B {name}({{.*}})?$", parts["METRICS"], re.MULTILINE)
    assert {"EXIT STATUS", "ENVIRONMENT", "FILES"} < set(parts)
    for variable in re.findall(r'os\.environ(?:\.\w+)?[\[(]"(\w+)"', sources()):
        assert variable in parts["ENVIRONMENT"]


def sources() -> str:
    text = "".join(file.read_text() for file in (ROOT / "conntrack_textfile").rglob("*.py"))
    assert "CONNTRACK_TEXTFILE_ENGINE" in text
    return text


def test_the_manual_page_is_well_formed() -> None:
    need("groff")
    page = ROOT / "man" / "conntrack-textfile.1"
    argv = ["groff", "-man", "-ww", "-Tutf8", "-P-cbou", str(page)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "EXIT STATUS" in done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sdist and the wheel built by python -m build."""
    need("gcc")
    where = tmp_path_factory.mktemp("build")
    source = shutil.copytree(ROOT, where / "checkout", ignore=NOT_OURS)
    argv = [sys.executable, "-m", "build", "--outdir", str(where / "dist"), str(source)]
    done = subprocess.run(
        argv, env={**os.environ, **QUICK}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted((where / "dist").iterdir(), key=lambda file: file.suffix)


def prints_the_sample(program: Path) -> None:
    done = subprocess.run([program, "write", SAMPLE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'engine="compiled"' in done.stdout
    assert "conntrack_total_connections 91\n" in done.stdout


def test_both_install_into_a_clean_environment(distributions: list[Path], tmp_path: Path) -> None:
    assert [file.suffix for file in distributions] == [".gz", ".whl"]
    for file in distributions:
        venv = tmp_path / file.suffix
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        quick = {**os.environ, **QUICK}
        subprocess.run([venv / "bin/pip", "install", "--quiet", file], env=quick, check=True)
        prints_the_sample(venv / "bin" / "conntrack-textfile")
        assert (venv / "share/man/man1/conntrack-textfile.1").exists()


def test_the_wheel_is_manylinux_compatible(distributions: list[Path]) -> None:
    argv = [sys.executable, "-m", "auditwheel", "show", str(distributions[1])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r'consistent\s+with the following platform tag:\s+"manylinux', done.stdout)


def test_pipx_and_uv_install_it(distributions: list[Path], tmp_path: Path) -> None:
    places = {
        **{f"PIPX_{name}": f"{tmp_path}/pipx/{name}" for name in ("HOME", "BIN_DIR", "MAN_DIR")},
        **{f"UV_TOOL_{name}": f"{tmp_path}/uv/{name}" for name in ("DIR", "BIN_DIR")},
    }
    for tool, install in (("pipx", ["install"]), ("uv", ["tool", "install"])):
        argv = [tool, *install, "--python", sys.executable, str(distributions[1])]
        subprocess.run(
            [sys.executable, "-m", *argv],
            env={**os.environ, **places},
            check=True,
            capture_output=True,
        )
        prints_the_sample(tmp_path / tool / "BIN_DIR" / "conntrack-textfile")
    assert (tmp_path / "pipx/MAN_DIR/man1/conntrack-textfile.1").exists()
