"""Drafts of plans, for tests of the engines, with an independent computation of their sums.

A draft becomes a plan by the parsers of the package. Its sums are computed entry by entry
with the ipaddress module and dictionaries.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from conntrack_textfile import filters, hosts, labels, networks, services
from conntrack_textfile.networks import Prefix
from conntrack_textfile.plan import Plan
from tests import conntrack_l
from tests.tables import ADDRESSES, MARKS, PORTS, ZONES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.conntrack_l import Address, Entry

    Network = ipaddress.IPv4Network | ipaddress.IPv6Network
    Rule = dict[str, str]  # the conditions of a filter, as users write them

_NUMBERS = {"tcp": 6, "udp": 17, "dccp": 33, "sctp": 132, "udplite": 136}
_BY_NUMBER = {"6": "tcp", "58": "icmpv6", "1": "icmp", "4": "ipv4"}
_CONDITIONS = {row.name: row.filter for row in labels.ROWS if row.filter}


class Draft(NamedTuple):
    """The options of a plan, as a user writes them."""

    labels: tuple[str, ...] = labels.LABELS
    src_prefix: tuple[int, int] = (32, 128)
    dst_prefix: tuple[int, int] = (32, 128)
    names: tuple[tuple[Network, str], ...] = ()
    hosts: tuple[tuple[Address, str], ...] = ()
    services: tuple[tuple[str, int, str], ...] = ()  # name, port and protocol
    known_ports: bool = False
    mark_mask: int = 0xFFFFFFFF
    include: tuple[Rule, ...] = ()
    exclude: tuple[Rule, ...] = ()

    @property
    def plan(self) -> Plan:
        named = networks.parse_names("".join(f"{cidr} {name}\n" for cidr, name in self.names))
        return Plan(
            include=tuple(map(_parsed, self.include)),
            exclude=tuple(map(_parsed, self.exclude)),
            labels=self.labels,
            src_prefix=Prefix(*self.src_prefix),
            dst_prefix=Prefix(*self.dst_prefix),
            networks=named,
            hosts=hosts.labels({address.packed: name for address, name in self.hosts}, named),
            services=services.parse_services(
                "".join(f"{name} {port}/{l4}\n" for name, port, l4 in self.services)
            ),
            known_ports=self.known_ports,
            mark_mask=self.mark_mask,
        )

    def sums(self, entries: Iterable[Entry]) -> tuple[dict[tuple[str, ...], list[int]], int]:
        """Return the five sums by group, and the number of entries that filters exclude."""
        found: dict[tuple[str, ...], list[int]] = {}
        filtered = 0
        for entry in entries:
            if self._passes(entry):
                group = tuple(self._value(entry, label) for label in self.labels)
                conntrack_l.add(found, group, entry.sums)
            else:
                filtered += 1
        return found, filtered

    def _passes(self, entry: Entry) -> bool:
        if any(_meets(entry, rule) for rule in self.exclude):
            return False
        return not self.include or any(_meets(entry, rule) for rule in self.include)

    def _value(self, entry: Entry, label: str) -> str:
        if label == "l7protocol":
            return self._service(entry)
        if label == "dport" and self.known_ports and self._service(entry) == "unknown":
            return "other"
        if label == "mark":
            return str(entry.mark & self.mark_mask)
        if label in ("src", "dst", "egress", "backend"):
            prefixes = {"src": self.src_prefix, "dst": self.dst_prefix}
            return self._address(getattr(entry, label), prefixes.get(label, (32, 128)))
        return conntrack_l.value(entry, label)

    def _address(self, address: Address | None, prefix: tuple[int, int]) -> str:
        if address is None:
            return ""
        holding = [(network.prefixlen, name) for network, name in self.names if address in network]
        length = prefix[address.version == 6]
        folded = any(network < address.max_prefixlen for network, _ in holding)
        if not folded and length == address.max_prefixlen and address in dict(self.hosts):
            return self._host(address)
        if holding:
            return max(holding)[1]
        if length == address.max_prefixlen:
            return str(address)
        return str(ipaddress.ip_network((address, length), strict=False))

    def _host(self, address: Address) -> str:
        name = dict(self.hosts)[address]
        own = ipaddress.ip_network(address)
        others = {other for network, other in self.names if network != own}
        others |= {other for another, other in self.hosts if another != address}
        return f"{name} ({address})" if name in others | {"other"} else name

    def _service(self, entry: Entry) -> str:
        if entry.l4protocol not in _NUMBERS:
            return "na"
        for name, port, l4 in self.services:
            if (port, l4) == (entry.dport, entry.l4protocol):
                return name
        built_in = services.SERVICES[_NUMBERS[entry.l4protocol]]
        return built_in.get(entry.dport, "unknown")


def _parsed(rule: Rule) -> filters.Filter:
    return filters.parse(",".join(f"{name}={value}" for name, value in rule.items()), _CONDITIONS)


def _meets(entry: Entry, rule: Rule) -> bool:
    return all(_is(entry, name, value) for name, value in rule.items())


def _is(entry: Entry, name: str, wanted: str) -> bool:
    """Return whether an entry meets a condition of a filter."""
    if name in ("src", "dst", "egress", "backend"):
        address: Address | None = getattr(entry, name)
        return address is not None and address in ipaddress.ip_network(wanted)
    if name == "dport":
        first, _, last = wanted.partition("-")
        return int(first) <= entry.dport <= int(last or first)
    if name == "mark":
        value, _, mask = wanted.partition("/")
        return entry.mark & int(mask or "0xffffffff", 0) == int(value, 0)
    if name == "l4protocol":
        wanted = _BY_NUMBER.get(wanted, wanted)
    return conntrack_l.value(entry, name) == wanted


# Strategies


_ALL_ADDRESSES = st.sampled_from([*ADDRESSES["ipv4"], *ADDRESSES["ipv6"]])


@st.composite
def cidrs(draw: st.DrawFn) -> Network:
    """Networks that contain an address of the tables, so that they are nested."""
    address = ipaddress.ip_address(draw(_ALL_ADDRESSES))
    length = draw(
        st.sampled_from((0, 1, 7, 8, 9, 16, 24, 31, 32, 33, 63, 64, 127, 128))
        | st.integers(0, address.max_prefixlen)
    )
    return ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False)


@st.composite
def _marks(draw: st.DrawFn) -> str:
    mask = draw(st.sampled_from([0, 1, 0xFF, 0xFF00, 0x80000000, 0xFFFFFFFF]))
    value = draw(st.sampled_from(MARKS)) & mask
    form = draw(st.sampled_from(["{}/{}", "{:#x}/{:#x}"]))
    return str(value) if mask == 0xFFFFFFFF else form.format(value, mask)


_CIDR = cidrs().map(str)
_RULES = st.fixed_dictionaries(
    {},
    optional={
        "src": _CIDR,
        "dst": _CIDR,
        "l3protocol": st.sampled_from(["ipv4", "ipv6"]),
        "l4protocol": st.sampled_from(["tcp", "udp", "sctp", "gre", "icmp", "6", "4", "255"]),
        "dport": st.one_of(
            st.sampled_from(PORTS).map(str),
            st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(
                lambda ports: "{}-{}".format(*sorted(ports))
            ),
        ),
        "zone": st.sampled_from(ZONES).map(str),
        "mark": _marks(),
        "egress": _CIDR,
        "backend": _CIDR,
    },
).filter(lambda rule: 0 < len(rule) <= 4)
_FILTERS = st.lists(_RULES, max_size=3).map(tuple)
# "other" and "unknown" are what the engine itself says of others.
_NAMES = st.sampled_from(["lan", "other", "unknown", "Zürich", "z" * 70, "0"])

DRAFTS: st.SearchStrategy[Draft] = st.builds(
    Draft,
    labels=st.sets(st.sampled_from(labels.LABELS)).map(
        lambda kept: tuple(label for label in labels.LABELS if label in kept)
    ),
    src_prefix=st.tuples(st.integers(0, 32), st.integers(0, 128)),
    dst_prefix=st.sampled_from([(32, 128), (8, 48), (0, 0), (31, 127)]),
    names=st.dictionaries(cidrs(), _NAMES, max_size=12).map(lambda names: tuple(names.items())),
    hosts=st.dictionaries(_ALL_ADDRESSES.map(ipaddress.ip_address), _NAMES, max_size=8).map(
        lambda names: tuple(names.items())
    ),
    services=st.dictionaries(
        st.tuples(st.sampled_from(PORTS), st.sampled_from(sorted(_NUMBERS))), _NAMES, max_size=5
    ).map(lambda found: tuple((name, port, l4) for (port, l4), name in found.items())),
    known_ports=st.booleans(),
    mark_mask=st.sampled_from([0, 1, 0xFF, 0xFF00, 0x80000001, 0xFFFFFFFF]),
    include=_FILTERS,
    exclude=_FILTERS,
)

# Fixed drafts for the fuzzer, from simple to nasty.


def _nested() -> tuple[tuple[Network, str], ...]:
    """Return networks of every second prefix length that contain one of two addresses."""
    found: list[tuple[Network, str]] = []
    for address in ("10.77.1.2", "fd77:1::2"):
        whole = ipaddress.ip_address(address)
        found += [
            (ipaddress.ip_network((whole, length), strict=False), f"n{length % 7}")
            for length in range(0, whole.max_prefixlen + 1, 2)
        ]
    return tuple(found)


def _hosts() -> tuple[tuple[Address, str], ...]:
    """Return names for every second address; some name two addresses."""
    every = [*ADDRESSES["ipv4"][::2], *ADDRESSES["ipv6"][::2]]
    return tuple((ipaddress.ip_address(one), f"h{n % 7}") for n, one in enumerate(every))


FIXED = [
    Draft(),
    Draft(labels=labels.DEFAULT),
    Draft(labels=()),
    Draft(labels=("l3protocol", "l4protocol")),
    Draft(labels=("zone", "mark"), mark_mask=0xFF00),
    Draft(labels=("egress", "backend"), names=_nested()),
    Draft(src_prefix=(24, 64), dst_prefix=(0, 0), known_ports=True),
    Draft(names=_nested(), src_prefix=(1, 127)),
    Draft(hosts=_hosts()),
    Draft(hosts=_hosts(), names=_nested()[3:9], src_prefix=(24, 128), dst_prefix=(32, 64)),
    Draft(
        include=({"egress": "10.77.2.1"}, {"backend": "0.0.0.0/0"}, {"mark": "0x2a/0xff"}),
        exclude=({"zone": "5"},),
    ),
    Draft(
        names=_nested(),
        services=(("other", 443, "tcp"), ("unknown", 53, "udp"), ("na", 30004, "sctp")),
        known_ports=True,
        mark_mask=0x80000001,
        include=({"src": "0.0.0.0/0"}, {"dst": "fd77::/16", "l4protocol": "tcp"}),
        exclude=(
            {"dport": "0-79", "l4protocol": "tcp"},
            {"src": "10.77.0.0/16", "zone": "6"},
            {"egress": "::/0", "l3protocol": "ipv4"},
        ),
    ),
]
