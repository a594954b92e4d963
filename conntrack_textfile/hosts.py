"""Names of single hosts, from /etc/hosts and the lease files of DHCP servers.

The formats, detected by content, and their sources:

    hosts    hosts(5): address, name and aliases
    dnsmasq  lease_update_file() in its src/lease.c: expiry, MAC address (IPv6: IAID),
             address, name or *, client identifier; a line "duid" before IPv6 leases
    kea      memfile of Kea, src/lib/dhcpsrv/csv_lease_file4.cc and csv_lease_file6.cc:
             CSV with a header; the last row of an address is valid
    dhcpd    dhcpd.leases(5) of ISC DHCP: blocks; the last block of an address is valid

A wrong line of /etc/hosts is an error. Lease files are written while we read, and clients
choose the names: unknown and incomplete lines, and names with unprintable characters, are
ignored.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import math
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import networks
from conntrack_textfile.files import regular
from conntrack_textfile.names import check_all, checked
from conntrack_textfile.plan import OTHER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from conntrack_textfile.networks import Networks

_MAX_FILE_SIZE = 1 << 26  # characters: some 200,000 leases
_MAX_COLUMNS = 100

# dnsmasq truncates its file and then rewrites it: a file modified this recently is read again.
_SETTLED_SECONDS = 0.05
_MAX_READINGS = 5

NEVER = math.inf


class Lease(NamedTuple):
    """The name of an address."""

    name: str
    ends: float = NEVER  # Unix time; -NEVER where the address has no name now


class Hosts(NamedTuple):
    """The names that are valid at one time."""

    names: dict[bytes, str]  # by packed address
    until: float  # Unix time at which the first of them expires


def read(files: Iterable[str], now: float) -> Hosts:
    """Read files of names. For an address in several files the last file wins.

    now: Unix time; leases that ended before it have no name.

    Raises OSError with filename, and ValueError with file, line and reason.
    """
    names: dict[bytes, str] = {}
    until = NEVER
    for file in files:
        try:
            leases = parse(_text_of(file))
        except ValueError as error:
            raise ValueError(f"{file}, {error}") from None
        for address, lease in leases.items():
            if lease.ends > now:
                names[address] = lease.name
                until = min(until, lease.ends)
    check_all(names.values())
    return Hosts(names, until)


def watched(file: str) -> list[str]:
    """Return the files that are read for a file: the memfile of Kea has several.

    Once an hour Kea moves FILE to FILE.1, begins a new FILE, and merges FILE.2 and FILE.1
    to FILE.completed, which then becomes FILE.2 (lease file cleanup). It reads them in this
    order itself (loadLeasesFromFiles() in memfile_lease_mgr.cc).
    """
    return [f"{file}.completed", f"{file}.2", f"{file}.1", file]


def labels(hosts: Mapping[bytes, str], named: Networks) -> dict[bytes, str]:
    """Return the label of each host, without hosts in a network that has a name.

    hosts: names by packed address.
    named: names of networks and single addresses, which win over hosts.

    A name that is not unique, or that reads as an address or as such a label, is followed
    by the address in parentheses: no two addresses have the same label.
    """
    # Networks, without single addresses.
    wider = tuple(row for row in named if row[1] < row[0] * 8)
    single = [
        (prefix.to_bytes(size, "big"), name)
        for size, length, names in named
        if length == size * 8
        for prefix, name in names.items()
    ]
    taken = {OTHER, *(name for *_, names in wider for name in names.values())}
    first: dict[str, bytes] = {}
    for address, name in [*single, *hosts.items()]:
        if first.setdefault(name, address) != address:
            taken.add(name)
    shown = {}
    for address, name in hosts.items():
        if wider and networks.name(wider, address) is not None:
            continue
        if name in taken or name.endswith(")") or networks.reads_as_address(name):
            shown[address] = f"{name} ({networks.text_of(address, len(address) * 8)})"
        else:
            shown[address] = name
    return shown


def parse(text: str) -> dict[bytes, Lease]:
    """Parse a text in any of the formats: leases by packed address.

    Raises ValueError with line and reason.
    """
    for number, line in enumerate(_lines(text), 1):
        words = line.partition("#")[0].split(None, 5)
        if not words:
            continue
        if words[0].startswith(_KEA_HEADER):
            return _kea(text)
        if networks.pack(_without_scope(words[0])):
            return _hosts(text)
        if words[0] == "duid" or (_is_time(words[0]) and len(words) >= 5):
            return _dnsmasq(text)
        if line.rstrip()[-1] in "{;":  # statements and blocks of dhcpd
            return _dhcpd(text)
        raise ValueError(
            f"line {number}: it begins neither as /etc/hosts does "
            "nor as leases of dnsmasq, Kea or ISC dhcpd"
        )
    return {}


def _hosts(text: str) -> dict[bytes, Lease]:
    """Parse /etc/hosts: the first name of each address, as getnameinfo(3) returns it."""
    found: dict[bytes, Lease] = {}
    for number, line in enumerate(_lines(text), 1):
        words = line.partition("#")[0].split(None, 2)
        if not words:
            continue
        address = networks.pack(_without_scope(words[0]))
        if not address:
            raise ValueError(f"line {number}: {words[0]!r} is not an address")
        if len(words) < 2:
            raise ValueError(f"line {number}: a line is an address and names")
        name = _printable(words[1])
        if name is None:
            raise ValueError(f"line {number}: the name {words[1]!r} cannot be shown")
        try:
            lease = Lease(checked(name))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        # Block lists map all names to 0.0.0.0; the kernel tracks addresses without a scope.
        if any(address) and "%" not in words[0]:
            found.setdefault(address, lease)
    return found


def _dnsmasq(text: str) -> dict[bytes, Lease]:
    found: dict[bytes, Lease] = {}
    for line in _lines(_complete(text)):
        words = line.split(None, 5)
        if len(words) < 5 or not _is_time(words[0]):
            continue  # also lines "duid", "vendorclass" and "agent-info"
        ends = int(words[0])  # 0: infinite lease
        name = "" if words[3] == "*" else words[3]
        _put(found, words[2], name, ends or NEVER)
    return found


_KEA_HEADER = "address,"
_KEA_COLUMNS = ("address", "valid_lifetime", "expire", "hostname")
_KEA_ASSIGNED = ("", "0", "4")  # state: no such column, default, registered (IPv6)
_KEA_PREFIX = "2"  # lease_type: prefix delegation (IA_PD)
_KEA_INFINITE = "4294967295"


def _kea(text: str) -> dict[bytes, Lease]:
    found: dict[bytes, Lease] = {}
    at: dict[str, int] = {}
    width = 0
    for line in _lines(_complete(text)):
        values = line.split(",", _MAX_COLUMNS)
        if line.startswith(_KEA_HEADER):
            at = {name: index for index, name in enumerate(values)}
            missing = [name for name in _KEA_COLUMNS if name not in at]
            if missing:
                raise ValueError(f"its leases of Kea have no column {missing[0]}")
            width = len(values)
            address, lifetime, expire, hostname = [at[name] for name in _KEA_COLUMNS]
            state, kind = at.get("state", width), at.get("lease_type", width)
            continue
        # Rows of an older version can have fewer columns than the header.
        values += [""] * (width + 1 - len(values))
        if not width or values[kind] == _KEA_PREFIX or not _is_time(values[expire]):
            continue
        name = ""
        # The row of a deleted lease has valid_lifetime 0.
        if values[lifetime] != "0" and values[state] in _KEA_ASSIGNED:
            name = _unescaped(values[hostname], _KEA_ESCAPE, 16)
        infinite = values[lifetime] == _KEA_INFINITE
        _put(found, values[address], name, NEVER if infinite else int(values[expire]))
    return found


# Escapes of bytes: Kea writes two hexadecimal digits, dhcpd three octal ones or \ and the byte.
_KEA_ESCAPE = re.compile(rb"&#x([0-9a-fA-F]{2})")
_DHCPD_ESCAPE = re.compile(rb"\\(?:([0-7]{3})|(.))", re.DOTALL)

# dhcpd writes one statement per line. For IPv6 each iaaddr is a block within an ia-na block.
_DHCPD = re.compile(
    r"""^[ \t]*(?:
        (?:lease|iaaddr)[ \t]+(?P<address>[0-9a-fA-F:.]{2,45})[ \t]*\{
      | ends[ \t]+(?P<ends>[^;\n]{1,100});
      | binding[ \t]+state[ \t]+(?P<state>[a-z-]{1,20});
      | (?P<abandoned>abandoned);
      | client-hostname[ \t]+"(?P<name>(?:[^"\\\n]|\\.){1,1020})";
      | set[ \t]+ddns-fwd-name[ \t]*=[ \t]*"(?P<dns>(?:[^"\\\n]|\\.){1,1020})";
      | (?P<end>\})
    )""",
    re.MULTILINE | re.VERBOSE,
)

# Weekday and time in UTC, or "epoch" and seconds.
_DHCPD_TIME = re.compile(
    r"epoch[ ]+(?P<epoch>\d{1,20})|\d[ ]+(\d{4})/(\d\d?)/(\d\d?)[ ]+(\d\d?):(\d\d?):(\d\d?)",
    re.ASCII,
)


def _dhcpd(text: str) -> dict[bytes, Lease]:
    found: dict[bytes, Lease] = {}
    address, block = "", dict[str, str]()
    for match in _DHCPD.finditer(text):
        what, value = match.lastgroup or "", match[match.lastgroup or 0]
        if what == "address":
            address, block = value, {}
        elif what != "end":
            block[what] = value
        elif address:
            name = block.get("name") or block.get("dns", "")
            name = _unescaped(name, _DHCPD_ESCAPE, 8)
            if block.get("state", "active") != "active" or "abandoned" in block:
                name = ""
            _put(found, address, name, _dhcpd_time(block.get("ends", "never")))
            address = ""
    return found


def _dhcpd_time(text: str) -> float:
    """The Unix time at which a lease ends. An invalid time is in the past."""
    if text == "never":
        return NEVER
    match = _DHCPD_TIME.fullmatch(text.strip())
    if match is None:
        return -NEVER
    if match["epoch"]:
        return int(match["epoch"])
    try:
        year, month, day, hour, minute, second = [int(match[n]) for n in range(2, 8)]
        date = dt.datetime(year, month, day, hour, minute, second, tzinfo=dt.timezone.utc)
    except ValueError:
        return -NEVER
    return date.timestamp()


def _put(found: dict[bytes, Lease], address: str, name: str, ends: float) -> None:
    """Set the lease of an address, in place of an earlier one. name: "" for none."""
    packed = networks.pack(address)
    if not packed:
        return
    shown = _printable(name)
    try:
        found[packed] = Lease(checked(shown or ""), ends if shown else -NEVER)
    except ValueError:  # too long
        found[packed] = Lease("", -NEVER)


def _printable(name: str) -> str | None:
    """Return a name without the trailing dot of the DNS root, None if it is not printable.

    Not printable: control characters (terminal escapes), and surrogates (bytes that are
    not UTF-8).
    """
    name = name.removesuffix(".").strip()
    return name if name and name.isprintable() else None


def _unescaped(text: str, escape: re.Pattern[bytes], base: int) -> str:
    """Replace escapes by their bytes: group 1 of escape in a base, or group 2 itself."""
    if "&" not in text and "\\" not in text:
        return text

    def byte(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[1], base) & 255]) if match[1] else match[2]

    raw = escape.sub(byte, text.encode(errors="surrogateescape"))
    return raw.decode(errors="surrogateescape")


def _is_time(text: str) -> bool:
    """Whether a text is a number of seconds: ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def _without_scope(address: str) -> str:
    """Return fe80::1 for fe80::1%eth0."""
    return address.partition("%")[0] if ":" in address else address


def _lines(text: str) -> Iterator[str]:
    """Split lines, without a list of all."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _complete(text: str) -> str:
    """Return the complete lines: the last may be half written."""
    return text[: text.rfind("\n") + 1]


def _text_of(file: str) -> str:
    """Read a file, or the files of a Kea memfile. Raises OSError."""
    text = _read_text(file)
    if text.startswith(_KEA_HEADER):
        condensed, before, moved, _ = watched(file)
        text = "".join([*(_existing(condensed) or _existing(before, moved)), text])
    if len(text) > _MAX_FILE_SIZE:
        raise OSError(errno.EFBIG, f"it is larger than {_MAX_FILE_SIZE >> 20} MiB", file)
    return text


def _existing(*files: str) -> list[str]:
    """Return the texts of the files that exist, in order."""
    texts = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            texts.append(_complete(_read_text(file)))
    return texts


def _read_text(file: str) -> str:
    """Read a file, again while it is being written, at most 5 times. Raises OSError."""
    text = ""
    for _ in range(_MAX_READINGS):
        with open(file, encoding="utf-8-sig", errors="surrogateescape", opener=regular) as lines:
            before = os.fstat(lines.fileno())
            try:
                text = lines.read(_MAX_FILE_SIZE + 1)
            except OSError as error:
                error.filename = file  # read(2) has none
                raise
            after = os.fstat(lines.fileno())
        same = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        if same and abs(time.time() - after.st_mtime) > _SETTLED_SECONDS:
            break
        time.sleep(_SETTLED_SECONDS)
    return text
