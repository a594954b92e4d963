"""The plan: what the engine does with an entry. Made once of the options."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import labels, services
from conntrack_textfile.networks import WHOLE, Networks, Prefix

if TYPE_CHECKING:
    from conntrack_textfile.filters import Filter

# The value of a label of all that has no value of its own.
OTHER = "other"


class Plan(NamedTuple):
    """Filters, and how what passes them is grouped."""

    include: tuple[Filter, ...] = ()  # any of these, or all entries where there is none
    exclude: tuple[Filter, ...] = ()  # and none of these
    labels: tuple[str, ...] = labels.DEFAULT  # some of labels.LABELS, in their order
    src_prefix: Prefix = WHOLE
    dst_prefix: Prefix = WHOLE
    networks: Networks = ()
    # What is shown for packed addresses in no network with a name of its own, where
    # they are kept whole.
    hosts: dict[bytes, str] = {}  # noqa: RUF012 (nobody changes it)
    services: services.Services = services.SERVICES
    known_ports: bool = False  # ports without a service become "other"
    mark_mask: int = 0xFFFFFFFF  # bits of the mark that are kept
    nat: bool = True  # whether translated entries are counted

    @property
    def address_names(self) -> list[str]:
        """All names of networks and hosts, in ascending order."""
        names = {name for *_, names in self.networks for name in names.values()}
        return sorted(names | set(self.hosts.values()))

    @property
    def service_names(self) -> list[str]:
        """All values that l7protocol can have, in ascending order."""
        names = {name for ports in self.services.values() for name in ports.values()}
        return sorted(names | {services.UNKNOWN, services.WITHOUT_PORTS})
