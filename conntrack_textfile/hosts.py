"""Names of single hosts: of /etc/hosts, and of the leases that DHCP servers write.

The formats, told apart by content, and where they are written down:

    hosts    hosts(5): address, name and aliases
    dnsmasq  lease_update_file() in its src/lease.c: when it ends, MAC address (of IPv6
             the IAID), address, name or *, client identifier; a line "duid" before IPv6
    kea      memfile of Kea, src/lib/dhcpsrv/csv_lease_file4.cc and csv_lease_file6.cc:
             comma-separated, with a header; the last row of an address is valid
    dhcpd    dhcpd.leases(5) of ISC DHCP: blocks, of which the last of an address is valid

People write /etc/hosts: a line of it that is wrong is an error. Servers write leases,
often while we read, and by names that their clients choose: there a line that says
nothing to us, one without its end, and a name that cannot be shown are passed over.
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

# Leases of some 200,000 hosts.
_MAX_FILE_SIZE = 1 << 26  # characters
_MAX_COLUMNS = 100

# dnsmasq empties its file before it writes it anew: one that was written a moment ago
# is read once more, so many times at most.
_SETTLED_SECONDS = 0.05
_MAX_READINGS = 5

NEVER = math.inf


class Lease(NamedTuple):
    """A name of an address."""

    name: str
    ends: float = NEVER  # seconds since the epoch


class Hosts(NamedTuple):
    """What the files say at one time."""

    names: dict[bytes, str]  # by packed address
    until: float  # when the first of these names ends, in seconds since the epoch


def read(files: Iterable[str], now: float) -> Hosts:
    """The names of files. Of an address that several name the last counts.

    Raises OSError, and ValueError with file, line and reason.
    """
    names: dict[bytes, str] = {}
    until = NEVER
    for file in files:
        try:
            leases = parse(_text(file))
        except ValueError as error:
            raise ValueError(f"{file}, {error}") from None
        for address, lease in leases.items():
            if lease.ends > now:
                names[address] = lease.name
                until = min(until, lease.ends)
    check_all(names.values())
    return Hosts(names, until)


def watched(file: str) -> list[str]:
    """The files that are read for one that is named: Kea's memfile is in several.

    Once an hour Kea moves its file to FILE.1, begins a new one, and has FILE.1 and
    FILE.2, the rest from before, condensed to FILE.completed, which becomes FILE.2.
    It reads them in this order itself (loadLeasesFromFiles() in memfile_lease_mgr.cc).
    """
    return [f"{file}.completed", f"{file}.2", f"{file}.1", file]


def labels(hosts: Mapping[bytes, str], named: Networks) -> dict[bytes, str]:
    """What is shown for each address, but for those that a network's name stands for.

    A name that something else has too, or could be taken for having, is followed by
    the address: no two addresses have the same label.
    """
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
        if name in taken or name.endswith(")") or networks.is_like_one(name):
            shown[address] = f"{name} ({networks.text_of(address, len(address) * 8)})"
        else:
            shown[address] = name
    return shown


def parse(text: str) -> dict[bytes, Lease]:
    """The names in a text of any of the formats. Raises ValueError with line and reason."""
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
        if line.rstrip()[-1] in "{;":  # all that dhcpd writes is statements and blocks
            return _dhcpd(text)
        raise ValueError(
            f"line {number}: it begins neither as /etc/hosts does "
            "nor as leases of dnsmasq, Kea or ISC dhcpd"
        )
    return {}


def _hosts(text: str) -> dict[bytes, Lease]:
    """The first name of each address: that is what the resolver gives for it."""
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
        name = _shown(words[1])
        if name is None:
            raise ValueError(f"line {number}: the name {words[1]!r} cannot be shown")
        try:
            lease = Lease(checked(name))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        # Lists of names to block have it for all of them; and the kernel tracks no scope.
        if any(address) and "%" not in words[0]:
            found.setdefault(address, lease)
    return found


def _dnsmasq(text: str) -> dict[bytes, Lease]:
    found: dict[bytes, Lease] = {}
    for line in _lines(_whole(text)):
        words = line.split(None, 5)
        if len(words) < 5 or not _is_time(words[0]):
            continue  # also lines "duid", "vendorclass" and "agent-info"
        ends = int(words[0])  # 0 for ever
        name = "" if words[3] == "*" else words[3]
        _put(found, words[2], name, ends or NEVER)
    return found


_KEA_HEADER = "address,"
_KEA_COLUMNS = ("address", "valid_lifetime", "expire", "hostname")
_KEA_ASSIGNED = ("", "0", "4")  # of no column, "default", and "registered" of IPv6
_KEA_PREFIX = "2"  # lease_type: a network that is delegated, not an address
_KEA_FOREVER = "4294967295"


def _kea(text: str) -> dict[bytes, Lease]:
    found: dict[bytes, Lease] = {}
    at: dict[str, int] = {}
    width = 0
    for line in _lines(_whole(text)):
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
        # What an older server wrote, of fewer columns than the header, has the defaults.
        values += [""] * (width + 1 - len(values))
        if not width or values[kind] == _KEA_PREFIX or not _is_time(values[expire]):
            continue
        name = ""
        # A lease that is deleted is written once more with no time to live.
        if values[lifetime] != "0" and values[state] in _KEA_ASSIGNED:
            name = _unescaped(values[hostname], _KEA_ESCAPE, 16)
        forever = values[lifetime] == _KEA_FOREVER
        _put(found, values[address], name, NEVER if forever else int(values[expire]))
    return found


# What stands for bytes in texts: two hexadecimal digits, or three octal ones and any byte.
_KEA_ESCAPE = re.compile(rb"&#x([0-9a-fA-F]{2})")
_DHCPD_ESCAPE = re.compile(rb"\\(?:([0-7]{3})|(.))", re.DOTALL)

# dhcpd writes a statement a line. Of a block of IPv6 each address is a block of its own.
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

# In UTC; the weekday is for people.
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
    """When a lease ends. What is no time is past."""
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
    """Note the lease of an address, in place of the one before. "" is no name."""
    packed = networks.pack(address)
    if not packed:
        return
    shown = _shown(name)
    try:
        found[packed] = Lease(checked(shown or ""), ends if shown else -NEVER)
    except ValueError:  # too long to be in every series
        found[packed] = Lease("", -NEVER)


def _shown(name: str) -> str | None:
    """A name without the dot of the root at its end, None where it cannot be shown.

    A terminal would obey some characters. Surrogates stand for bytes that are no UTF-8.
    """
    name = name.removesuffix(".").strip()
    return name if name and name.isprintable() else None


def _unescaped(text: str, escape: re.Pattern[bytes], base: int) -> str:
    """A text with bytes in place of their escapes: of digits, or another byte after them."""
    if "&" not in text and "\\" not in text:
        return text

    def byte(match: re.Match[bytes]) -> bytes:
        return bytes([int(match[1], base) & 255]) if match[1] else match[2]

    raw = escape.sub(byte, text.encode(errors="surrogateescape"))
    return raw.decode(errors="surrogateescape")


def _is_time(text: str) -> bool:
    """Whether it is a number of seconds, as all of ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= 20


def _without_scope(address: str) -> str:
    """fe80::1%eth0 without its interface."""
    return address.partition("%")[0] if ":" in address else address


def _lines(text: str) -> Iterator[str]:
    """Line by line, without a list of all."""
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end + 1


def _whole(text: str) -> str:
    """A text up to the end of a line: the last may be half written."""
    return text[: text.rfind("\n") + 1]


def _text(file: str) -> str:
    """The text of a file, or of all that belong to it. Raises OSError."""
    text = _settled(file)
    if text.startswith(_KEA_HEADER):
        condensed, before, moved, _ = watched(file)
        text = "".join([*(_present(condensed) or _present(before, moved)), text])
    if len(text) > _MAX_FILE_SIZE:
        raise OSError(errno.EFBIG, f"it is larger than {_MAX_FILE_SIZE >> 20} MiB", file)
    return text


def _present(*files: str) -> list[str]:
    """The texts of those files that are there."""
    texts = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            texts.append(_whole(_settled(file)))
    return texts


def _settled(file: str) -> str:
    """The text of a file that nobody writes at the moment."""
    text = ""
    for _ in range(_MAX_READINGS):
        with open(file, encoding="utf-8-sig", errors="surrogateescape", opener=regular) as lines:
            before = os.fstat(lines.fileno())
            text = lines.read(_MAX_FILE_SIZE + 1)
            after = os.fstat(lines.fileno())
        same = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        if same and abs(time.time() - after.st_mtime) > _SETTLED_SECONDS:
            break
        time.sleep(_SETTLED_SECONDS)
    return text
