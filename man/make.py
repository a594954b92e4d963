"""Make the manual page of the usage text: python man/make.py > man/conntrack-textfile.1."""

from __future__ import annotations

import re
import sys

from conntrack_textfile import __version__, families
from conntrack_textfile.options import usage

USAGE = usage("write", "serve", "top", "check")

REST = """\
.SH EXIT STATUS
.TP
.B 0
It worked; of check: all that is needed does, whatever is warned of.
.TP
.B 1
It failed, and FILE is as it was; of check: something that is needed does not work.
.TP
.B 2
Wrong usage, or a file that an option names is wrong; nothing was done.
.SH ENVIRONMENT
.TP
.B CONNTRACK_TEXTFILE_ENGINE
.I compiled
or
.IR pure :
which of the two engines counts. Both give the same.
.TP
.BR LISTEN_PID ,\\  LISTEN_FDS ,\\  LISTEN_FDNAMES
Sockets that systemd hands over: that of events, and with
.B \\-\\-web.systemd\\-socket
those to listen on.
.TP
.BR NOTIFY_SOCKET ,\\  WATCHDOG_PID ,\\  WATCHDOG_USEC
Where serve tells systemd that it is ready and alive.
.TP
.B TERM
Where it is
.I dumb
top \\-\\-watch prints one table after the other.
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
.TP
.I /var/lib/conntrack\\-textfile/conntrack.prom
What the timer writes, for a link in the directory of node_exporter.
.TP
.IR /run/conntrack\\-textfile/state ,\\  /run/conntrack\\-exporter/state
What must outlive a run of either unit; beside it a file of the same name and
.IR .lock .
.TP
.I /proc/net/nf_conntrack
The table as text, where it is not read by netlink.
.TP
.I /proc/sys/net/netfilter/
The size of the table, and whether packets, bytes and start times are kept.
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
    """The headings of terms in the usage text, in their order."""
    found = re.findall(r"^(\w.*):$", USAGE, re.MULTILINE)
    return [heading for heading in found if heading not in ("Usage", "Examples")]


def examples() -> list[str]:
    """The calls at the end of the usage text."""
    return section("Examples").splitlines()


def metrics() -> list[tuple[str, str]]:
    """The name of each family with its labels, and its help."""
    found = []
    by_group = (*families.GROUPS, *families.TRAFFIC_GROUPS)
    found = [(f"{group.name}{{LABELS}}", group.help) for group in by_group]
    fixed = (*families.STATUS, *families.LIVE, *families.NAT, *families.STATISTICS)
    for row in (*fixed, *families.TRAFFIC):
        labels = f"{{{','.join(row.labels)}}}" if row.labels else ""
        found.append((f"{row.name}{labels}", row.help))
    return found


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
    lines += [".SH EXAMPLES", ".nf", *[escaped(line[2:]) for line in examples()], ".fi"]
    lines += [".SH METRICS", "LABELS are those that \\-\\-aggregate.by keeps."]
    for name, text in metrics():
        lines += [".TP", f".B {escaped(name)}", escaped(text)]
    return "\n".join(lines) + "\n" + REST


if __name__ == "__main__":
    sys.stdout.write(page())
