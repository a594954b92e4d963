"""Networks in CIDR notation, and names of networks."""

from __future__ import annotations

# Not from socket: the import takes longer than to read a small table.
from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple

from conntrack_textfile.names import check_all, checked


class Network(NamedTuple):
    """A network in CIDR notation."""

    size: int  # of an address, in bytes: 4 or 16
    length: int  # of the prefix, in bits
    prefix: int  # the value of its bits

    @property
    def packed(self) -> bytes:
        """The network address, packed."""
        return (self.prefix << self.size * 8 - self.length).to_bytes(self.size, "big")

    def holds(self, address: bytes) -> bool:
        """Whether a packed address is in the network."""
        return (
            len(address) == self.size
            and int.from_bytes(address, "big") >> self.size * 8 - self.length == self.prefix
        )


class Prefix(NamedTuple):
    """Prefix lengths to mask addresses with."""

    v4: int
    v6: int


WHOLE = Prefix(32, 128)

# (size of an address, length, names by prefix) for each size and length; longest first.
Networks = tuple[tuple[int, int, dict[int, str]], ...]


def parse(text: str) -> Network:
    """Parse ADDRESS/LENGTH, or an address alone. Raises ValueError with the reason."""
    address, slash, length = text.partition("/")
    packed = pack(address)
    if not packed:
        raise ValueError(f"{text!r} is not an address or network in CIDR notation")
    bits = len(packed) * 8
    if slash and not (_is_length(length) and int(length) <= bits):
        raise ValueError(f"{text!r} needs a prefix length from 0 to {bits}")
    host = bits - int(length) if slash else 0
    value = int.from_bytes(packed, "big")
    prefix = value >> host
    if prefix << host != value:
        network = text_of((prefix << host).to_bytes(len(packed), "big"), bits - host)
        raise ValueError(f"{text!r} has host bits set: the network is {network}")
    return Network(len(packed), bits - host, prefix)


def parse_names(text: str) -> Networks:
    """Parse lines "CIDR name"; # begins a comment. Raises ValueError with line and reason."""
    found: dict[Network, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            network, name = _named(words)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if network in found:
            raise ValueError(f"line {number}: the network {words[0]} is given twice")
        found[network] = name
    check_all(found.values())
    lengths: dict[tuple[int, int], dict[int, str]] = {}
    for (size, length, prefix), name in found.items():
        lengths.setdefault((size, length), {})[prefix] = name
    return tuple((*key, lengths[key]) for key in sorted(lengths, reverse=True))


def name(networks: Networks, address: bytes) -> str | None:
    """Return the name of the smallest network that contains a packed address, or None."""
    value = int.from_bytes(address, "big")
    for size, length, by_prefix in networks:
        if size == len(address):
            found = by_prefix.get(value >> size * 8 - length)
            if found is not None:
                return found
    return None


def masked(address: bytes, length: int) -> bytes:
    """Zero the bits of a packed address after a prefix length."""
    whole, bits = divmod(length, 8)
    kept = address[:whole]
    if bits:
        kept += bytes([address[whole] >> 8 - bits << 8 - bits])
    return kept + bytes(len(address) - len(kept))


def text_of(address: bytes, length: int) -> str:
    """Format a packed address (RFC 5952), with /LENGTH if that is shorter than the address."""
    text = inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)
    return text if length == len(address) * 8 else f"{text}/{length}"


def pack(text: str) -> bytes:
    """Parse an IPv4 or IPv6 address to packed bytes; b"" if it is not one."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return b""


def reads_as_address(name: str) -> bool:
    """Whether a name reads as an address or a network."""
    address, slash, length = name.partition("/")
    return bool(pack(address)) and (not slash or _is_length(length))


def _is_length(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3


def _named(words: list[str]) -> tuple[Network, str]:
    if len(words) != 2:
        raise ValueError("a line is CIDR and a name of one word")
    network, name = parse(words[0]), checked(words[1])
    # As a label value it could not be told from that address or network.
    if reads_as_address(name):
        raise ValueError(f"the name {name!r} is an address")
    return network, name
