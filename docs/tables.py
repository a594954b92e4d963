"""Generate the tables of the pages, between markers, from the code: python docs/tables.py.

<!-- options write --> stands before the table of the options of write, <!-- options --> before
that of all commands, <!-- metrics STATUS --> before that of families.STATUS; <!-- end --> after.
"""

from __future__ import annotations

import re
from pathlib import Path

from conntrack_textfile import families, options
from conntrack_textfile.families import Family, GroupFamily

PAGES = sorted(Path(__file__).parent.glob("*.md"))
COMMANDS = ("write", "serve", "top")  # check has the options of write and serve

_TABLE = re.compile(r"(<!-- (options|metrics) ?(\w*) -->\n).*?(<!-- end -->)", re.DOTALL)


def made(page: str) -> str:
    """Return the text of a page with updated tables."""

    def table(match: re.Match[str]) -> str:
        start, what, which, end = match.groups()
        rows = of_options(which) if what == "options" else of_metrics(getattr(families, which))
        return f"{start}\n{rows}\n{end}"

    return _TABLE.sub(table, page)


def of_options(command: str) -> str:
    """Return the table of the options of one command only, or for "" of all commands."""
    described = {name: entries(options.usage(name)) for name in COMMANDS}
    common = set.intersection(*[set(found) for found in described.values()])
    if command:
        chosen = [entry for entry in described[command] if entry not in common]
    else:
        chosen = [entry for entry in described[COMMANDS[0]] if entry in common]
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for term, text in chosen:
        default = re.search(r" ?\[default: (.*?)\]", text)
        meaning = text.replace(default[0], "") if default else text
        value = f"`{default[1]}`" if default else ""
        lines.append(f"| `{term}` | {value} | {cell(meaning)} |")
    return "\n".join(lines) + "\n"


def entries(usage: str) -> list[tuple[str, str]]:
    """Parse a usage text into options and their descriptions."""
    found = []
    for text in re.split(r"^  (?=-)", usage, flags=re.MULTILINE)[1:]:
        # It ends at an empty line or at a heading.
        first, *rest = re.split(r"\n(?=\n|\S)", text)[0].splitlines()
        term, _, words = first.partition("  ")
        found.append((term, " ".join([words.strip(), *map(str.strip, rest)]).strip()))
    return found


def of_metrics(rows: tuple[Family | GroupFamily, ...]) -> str:
    """Return the table of the families of one tuple of families.py."""
    lines = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for row in rows:
        if isinstance(row, GroupFamily):
            labels = "those of the key"
        else:
            labels = ", ".join(f"`{name}`" for name in row.labels)
        lines.append(f"| `{row.name}` | {row.type} | {labels} | {cell(row.help)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return re.sub(r"([|*_<\[\]])", r"\\\1", text)


if __name__ == "__main__":
    for file in PAGES:
        file.write_text(made(file.read_text()))
