"""Generate the manual page from the usage text: python man/make.py > man/conntrack-textfile.1."""

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
Success; for check: everything required works, with or without warnings.
.TP
.B 1
Failure; FILE is unchanged. For check: something required does not work.
.TP
.B 2
Wrong usage, or an invalid file in an option; nothing was done.
.SH ENVIRONMENT
.TP
.B CONNTRACK_TEXTFILE_ENGINE
.I compiled
or
.IR pure :
the engine to use. Both return the same results.
.TP
.BR LISTEN_PID ,\\  LISTEN_FDS ,\\  LISTEN_FDNAMES
Sockets passed by systemd (socket activation): for events, and with
.B \\-\\-web.systemd\\-socket
for HTTP.
.TP
.BR NOTIFY_SOCKET ,\\  WATCHDOG_PID ,\\  WATCHDOG_USEC
serve notifies systemd of its start and its watchdog, see
.BR sd_notify (3).
.TP
.B TERM
If this is
.IR dumb ,
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
The file of the timer; a link to it is in the directory of node_exporter.
.TP
.IR /run/conntrack\\-textfile/state ,\\  /run/conntrack\\-exporter/state
State of the counters of either unit; the lock file has the suffix
.IR .lock .
.TP
.I /proc/net/nf_conntrack
The table as text, if it is not read by netlink.
.TP
.I /proc/sys/net/netfilter/
The size of the table, and whether packets, bytes and start times are recorded.
.SH SEE ALSO
.BR conntrack (8),
.BR nft (8),
.BR prometheus (1),
.BR prometheus\\-node\\-exporter (1)
"""


def escaped(text: str) -> str:
    """Escape text for roff(7)."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")


def section(name: str) -> str:
    """Return the lines under a heading of the usage text."""
    return USAGE.partition(f"\n{name}:\n")[2].partition("\n\n")[0]


def entries(text: str) -> list[tuple[str, str]]:
    """Return terms, which are indented by two spaces, and their descriptions."""
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
    """Return the headings in the usage text that have terms under them, in order."""
    found = re.findall(r"^(\w.*):$", USAGE, re.MULTILINE)
    return [heading for heading in found if heading not in ("Usage", "Examples")]


def examples() -> list[str]:
    """Return the examples of the usage text."""
    return section("Examples").splitlines()


def metrics() -> list[tuple[str, str]]:
    """Return the name of each family with its labels, and its help."""
    found = []
    by_group = (*families.GROUPS, *families.TRAFFIC_GROUPS)
    found = [(f"{group.name}{{LABELS}}", group.help) for group in by_group]
    fixed = (*families.STATUS, *families.LIVE, *families.NAT, *families.STATISTICS)
    for row in (*fixed, *families.TRAFFIC):
        labels = f"{{{','.join(row.labels)}}}" if row.labels else ""
        found.append((f"{row.name}{labels}", row.help))
    return found


def page() -> str:
    """Return the manual page."""
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
    lines += [".SH METRICS", "LABELS are those of \\-\\-aggregate.by."]
    for name, text in metrics():
        lines += [".TP", f".B {escaped(name)}", escaped(text)]
    return "\n".join(lines) + "\n" + REST


if __name__ == "__main__":
    sys.stdout.write(page())
