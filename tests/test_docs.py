from __future__ import annotations

import html.parser
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conntrack_textfile import families, options
from conntrack_textfile.labels import LABELS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TABLES = runpy.run_path(str(DOCS / "tables.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_tables_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert TABLES["made"](text) == text, "make docs"


def test_every_option_is_in_the_table_of_its_command() -> None:
    # check has those of write and serve.
    assert {*TABLES["COMMANDS"], "check"} == set(options._COMMANDS)
    common = TABLES["of_options"]("")
    text = (DOCS / "options.md").read_text()
    assert common in text
    for command in TABLES["COMMANDS"]:
        own = TABLES["of_options"](command)
        assert own in text
        names = set(re.findall(r"^  (-\S+)", options.usage(command), re.MULTILINE))
        assert "--limit.keys=N" in names
        assert names == set(re.findall(r"^\| `(-[^ `]*)", common + own, re.MULTILINE))


def test_a_default_is_in_its_column() -> None:
    assert "| `--limit.keys=N` | `10000` | Maximum number of keys " in TABLES["of_options"]("")
    assert "| `--file.group=NAME` |  | Group of FILE; " in TABLES["of_options"]("write")


def test_every_table_of_families_is_on_the_page() -> None:
    text = (DOCS / "metrics.md").read_text()
    tables = {
        name
        for name, rows in vars(families).items()
        if isinstance(rows, tuple)
        and rows
        and isinstance(rows[0], (families.Family, families.GroupFamily))
    }
    assert {"STATUS", "GROUPS", "TRAFFIC"} <= tables
    assert tables == set(re.findall(r"<!-- metrics (\w+) -->", text))
    for name in tables:
        for row in getattr(families, name):
            assert f"| `{row.name}` | {row.type} |" in text


def test_every_label_is_documented() -> None:
    text = (DOCS / "metrics.md").read_text().partition("\n## The labels\n")[2]
    for label in LABELS:
        assert f"`{label}`" in text.partition("\n## ")[0]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as on GitHub and the site."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_links_of_the_readme_have_targets() -> None:
    found = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", (ROOT / "README.md").read_text())
    assert len(found) > 20
    for file, anchor in found:
        page = ROOT / (file or "README.md")
        assert page.exists(), file
        assert not anchor or anchor in anchors(page), (file, anchor)


def commands() -> list[tuple[str, str]]:
    """Return the command lines in the README and the pages."""
    return [
        (page.name, line)
        for page in (ROOT / "README.md", *PAGES)
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line.startswith("conntrack-textfile ")
    ]


@pytest.mark.parametrize(("page", "line"), commands())
def test_documented_command_lines_are_valid(page: str, line: str) -> None:
    words = shlex.split(line.partition("|")[0])
    # A file of the reader's need not be here.
    named = [word for word in words[1:] if not word.startswith("--hosts.file=")]
    assert options.parse(named).command == words[1], page


class _Fetched(html.parser.HTMLParser):
    """Collects the URLs that a browser loads with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") != "canonical":
            self.found.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    assert not re.search(r"^(WARNING|ERROR)", done.stderr, re.MULTILINE), done.stderr
    assert done.returncode == 0, done.stderr
    return directory


def test_the_site_builds_without_warnings_and_has_every_page(site: Path) -> None:
    assert {file.stem for file in site.glob("*.html")} - {"404"} == {page.stem for page in PAGES}
    assert not list(site.rglob("*.py"))


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for file in site.glob("*.html"):
        parser = _Fetched()
        parser.feed(file.read_text())
        assert len(parser.found) > 3
        assert [url for url in parser.found if "//" in url] == []
    for file in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", file.read_text()), file
