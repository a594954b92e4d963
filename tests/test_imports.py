"""The arrows between modules run one way, those of lazy imports and of types included."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "conntrack_textfile"
ROOT = Path(__file__).parent.parent / PACKAGE

# Each module imports only of the lines above its own. A new one gets its place here.
LAYERS = [
    line.split()
    for line in """
        __init__ kernel.__init__ web.__init__
        errors tally units protocols files processes
        node_exporter
        logs textfile names
        networks services reload state
        filters
        labels
        plan
        aggregate hosts values
        namefiles
        options counters merge talkers
        kernel.uapi kernel.procfs
        kernel.namespace
        kernel.sysctl kernel.netlink kernel.nat kernel.events
        activation
        kernel.grouping
        kernel.procfile kernel.ctnetlink
        kernel.ledger kernel.statistics
        kernel._speedups
        kernel.engine
        kernel.tracker
        kernel.source
        kernel.table
        kernel.listener
        snapshot
        families tables gaps
        counting
        collector
        exposition columns
        terminal
        top
        watch
        web.body web.sockets web.limiter web.request web.sdnotify web.throttle web.yamlfile
        web.metrics web.markup web.history web.query
        web.cards web.chart web.overview
        web.page
        web.tls web.passwords
        web.config web.refresh web.process
        web.application
        web.http
        check
        cli
        __main__
    """.strip().splitlines()
]

# Nothing between the two ends knows them. All other modules at the top do so only by these.
TO_THE_ENDS = {
    "activation": "kernel.events kernel.namespace",
    "snapshot": "kernel.events kernel.sysctl",
    "tables": "kernel.grouping kernel.namespace kernel.table",
    "counting": "kernel.engine kernel.events kernel.listener kernel.namespace kernel.table "
    "kernel.tracker",
    "collector": "kernel.engine kernel.listener kernel.source kernel.sysctl",
    "watch": "kernel.engine kernel.events kernel.listener",
    "check": "kernel.engine kernel.events kernel.namespace kernel.netlink kernel.procfs "
    "kernel.source kernel.sysctl web.config web.sockets",
    "cli": "kernel.engine kernel.listener kernel.sysctl web.application web.config web.history "
    "web.http web.limiter web.process web.refresh web.sockets",
}


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    """The name of each module without that of the package, and its files.

    They are .py, .pyx or .pyi, and for a .pyx what it includes.
    """
    for file in sorted(root.rglob("*.py*")):
        if file.suffix in (".py", ".pyx", ".pyi"):
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            yield name, file
            if file.suffix == ".pyx":
                for part in re.findall(r'^include "(.+)"$', file.read_text(), re.MULTILINE):
                    yield name, file.parent / part


def statements(file: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a file, wherever they stand in it."""
    text = file.read_text()
    if file.suffix in (".pyx", ".pxi"):  # not Python: the imports alone are
        pattern = r"^[ \t]*((?:from\s+\S+\s+)?c?import\s+(?:\([^)]*\)|[^\n#]+))"
        found = re.findall(pattern, text, re.MULTILINE)
        text = "\n".join(re.sub(r"\bcimport\b", "import", line).strip() for line in found)
    assert not re.search(r"\b(import_module|__import__)\b", text), f"hidden from here: {file}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node


def arrows(root: Path) -> dict[str, set[str]]:
    """Each module to the modules of the package that it imports."""
    names = {name for name, _ in modules(root)}

    def module(dotted: str) -> str | None:
        """The module by its full name, None where there is no such module."""
        name = dotted.removeprefix(root.name).lstrip(".")
        for candidate in (name, f"{name}.__init__".lstrip(".")):
            if dotted.split(".", maxsplit=1)[0] == root.name and candidate in names:
                return candidate
        return None

    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, file in modules(root):
        for node in statements(file):
            if isinstance(node, ast.Import):
                found = [module(alias.name) for alias in node.names]
            else:
                assert node.level == 0, f"relative import in {file}"
                # Of a package its modules, and of a module or package what it holds.
                origin = node.module or ""
                found = [module(f"{origin}.{a.name}") or module(origin) for a in node.names]
            graph[name] |= {target for target in found if target is not None}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle, where there is one."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def end(module: str) -> str:
    """The end that a module belongs to: "kernel" or "web", or "" for none."""
    folder = module.partition(".")[0]
    return folder if folder in ("kernel", "web") else ""


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return arrows(ROOT)


def test_there_is_no_circle(graph: dict[str, set[str]]) -> None:
    assert circle(graph) == []


def test_every_module_has_its_place(graph: dict[str, set[str]]) -> None:
    placed = [name for line in LAYERS for name in line]
    assert sorted(placed) == sorted(graph)


def test_no_arrow_runs_back(graph: dict[str, set[str]]) -> None:
    height = {name: n for n, line in enumerate(LAYERS) for name in line}
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets
        if height[target] >= height[name]
    ]
    assert wrong == []


def test_the_ends_are_known_only_where_they_have_to_be(graph: dict[str, set[str]]) -> None:
    found = {
        name: " ".join(sorted(target for target in targets if end(target)))
        for name, targets in graph.items()
        if not end(name)
    }
    assert {name: targets for name, targets in found.items() if targets} == TO_THE_ENDS


def test_kernel_and_web_do_not_know_each_other(graph: dict[str, set[str]]) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph.items()
        for target in targets
        if {end(name), end(target)} == {"kernel", "web"}
    ]
    assert wrong == []


def test_every_kind_of_import_is_seen(tmp_path: Path) -> None:
    root = tmp_path / "package"
    (root / "kernel").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "kernel/__init__.py": "",
        "one.py": "def f():\n    from package import two, VERSION\n",
        "two.py": "if TYPE_CHECKING:\n    from package.three import Type\n",
        "three.py": "import os, package.kernel.fast\n",
        "kernel/fast.pyx": (
            "from libc.string cimport memcpy\nfrom package import (\n    four,\n)\n"
            'include "part.pxi"\n'
        ),
        "kernel/fast.pyi": "from package.five import Plan\n",
        "kernel/part.pxi": "cdef int f():\n    from package import six\n",
        "four.py": "import package\nfrom package.kernel import fast\n",
        "five.py": "import one\nfrom packages import two\n",
        "six.py": "",
    }
    for name, text in files.items():
        (root / name).write_text(text)
    graph = arrows(root)
    assert graph == {
        "__init__": set(),
        "kernel.__init__": set(),
        "one": {"two", "__init__"},
        "two": {"three"},
        "three": {"kernel.fast"},
        "kernel.fast": {"four", "five", "six"},
        "four": {"__init__", "kernel.fast"},
        "five": set(),
        "six": set(),
    }
    assert set(circle(graph)) == {"four", "kernel.fast"}
