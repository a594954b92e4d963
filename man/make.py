"""Make the manual page of the usage text: python man/make.py > man/conntrack-textfile.1."""

from __future__ import annotations

import re
import sys

from conntrack_textfile import __version__
from conntrack_textfile.options import usage

USAGE = usage("write", "serve", "top")

REST = """\
.SH EXIT STATUS
0 if it worked, 1 if it failed, 2 for wrong usage. On failure FILE is as it was.
.SH ENVIRONMENT
.TP
.B CONNTRACK_TEXTFILE_ENGINE
.I compiled
or
.IR pure :
which of the two engines counts. Both give the same.
.SH FILES
.TP
.I /etc/default/conntrack-textfile
.I ARGS
and
.I FILE
for the unit conntrack-textfile.service.
.TP
.I /etc/default/conntrack-exporter
.I ARGS
and
.I LISTEN
for the unit conntrack-exporter.service.
.SH SEE ALSO
.BR conntrack (8),
.BR nft (8),
.BR prometheus (1),
.BR prometheus\\-node\\-exporter (1)
"""


def escaped(text: str) -> str:
    """Text that roff(7) takes as it is."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")


def section(name: str) -> str:
    """The lines under a heading of the usage text."""
    return USAGE.partition(f"\n{name}:\n")[2].partition("\n\n")[0]


def entries(text: str) -> list[tuple[str, str]]:
    """Terms, each at the start of a line after two spaces, and what is said of them."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        match = re.match(r"  ([a-z-]\S*(?: [A-Z-]\S*)*)(?:  +(.*))?$", line)
        if match:
            found.append((match[1], match[2] or ""))
        else:
            term, words = found.pop()
            found.append((term, f"{words} {line.strip()}".strip()))
    return found


def headings() -> list[str]:
    """The headings of the usage text after its calls, in their order."""
    return re.findall(r"^(\w.*):$", USAGE, re.MULTILINE)[1:]


def page() -> str:
    """The whole page."""
    summary = USAGE.partition("\n")[0].rstrip(".")
    lines = [
        f'.TH CONNTRACK\\-TEXTFILE 1 "" "conntrack\\-textfile {__version__}"',
        ".SH NAME",
        f"conntrack\\-textfile \\- {escaped(summary)}",
        ".SH SYNOPSIS",
        ".nf",
        *[escaped(line.removeprefix("  ")) for line in section("Usage").splitlines()],
        ".fi",
    ]
    for heading in headings():
        lines.append(f".SH {heading.upper()}")
        for term, words in entries(section(heading)):
            lines += [".TP", f".B {escaped(term)}", escaped(words)]
    return "\n".join(lines) + "\n" + REST


if __name__ == "__main__":
    sys.stdout.write(page())
