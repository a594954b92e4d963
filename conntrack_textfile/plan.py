"""The plan: what the engine does with an entry. Made from the options and the names files."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import labels, services
from conntrack_textfile.networks import WHOLE, Networks, Prefix

if TYPE_CHECKING:
    from conntrack_textfile.filters import Filter

# The label value of groups beyond the limit, and of ports without a service (--aggregate.ports).
OTHER = "other"


class NameFiles(NamedTuple):
    """The files of names, see namefiles.read()."""

    networks: str = ""  # --networks.file; "": none
    services: str = ""  # --services.file
    hosts: tuple[str, ...] = ()  # --hosts.file


class Plan(NamedTuple):
    """Filters, and how the entries that pass them are grouped."""

    include: tuple[Filter, ...] = ()  # an entry must match one of these, if any
    exclude: tuple[Filter, ...] = ()  # and none of these
    labels: tuple[str, ...] = labels.DEFAULT  # some of labels.LABELS, in their order
    src_prefix: Prefix = WHOLE
    dst_prefix: Prefix = WHOLE
    networks: Networks = ()
    # Labels by packed address (hosts.labels()), used where addresses are not masked.
    hosts: dict[bytes, str] = {}  # noqa: RUF012 (never changed)
    services: services.Services = services.SERVICES
    known_ports: bool = False  # ports without a service become "other"
    mark_mask: int = 0xFFFFFFFF  # bits of the mark to keep
    nat: bool = True  # whether to count translated entries

    @property
    def address_names(self) -> list[str]:
        """All names of networks and hosts, sorted."""
        names = {name for *_, names in self.networks for name in names.values()}
        return sorted(names | set(self.hosts.values()))

    @property
    def service_names(self) -> list[str]:
        """All values of the label l7protocol, sorted."""
        names = {name for ports in self.services.values() for name in ports.values()}
        return sorted(names | {services.UNKNOWN, services.WITHOUT_PORTS})
