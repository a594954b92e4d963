"""The tables that a snapshot reads: our own, or one for each network namespace of --netns.

With --netns groups have the label netns, and their tallies are merged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conntrack_textfile.kernel import namespace
from conntrack_textfile.kernel.table import Table
from conntrack_textfile.labels import NETNS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from conntrack_textfile.options import Options
    from conntrack_textfile.plan import Plan
    from conntrack_textfile.tally import Group, Tally


class Tables:
    """The open tables, which are kept from one snapshot to the next."""

    def __init__(
        self, options: Options, dump_sockets: Mapping[str, Iterable[socket.socket]]
    ) -> None:
        """Open nothing before update().

        dump_sockets: netlink sockets passed by systemd (socket activation), by the name of
        the network namespace that they are in.
        """
        self.by_name: dict[str, Table] = {}
        """By the name of the network namespace; "" where there is only our own table."""
        self.netns = bool(options.netns)
        """Whether groups have the label netns."""
        self._options = options
        self._dump_sockets = dict(dump_sockets)

    def names(self) -> dict[str, str]:
        """Return the paths of the current network namespaces, by name."""
        options = self._options
        if not self.netns:
            return {"": ""}
        return namespace.find(options.netns, options.proc_root, self._dump_sockets)

    def update(self, retire: Callable[[Table], None]) -> None:
        """Open the tables of new namespaces, and close those of namespaces that are gone.

        retire: called with each table before it is closed.
        """
        options = self._options
        paths = self.names()
        for name, table in list(self.by_name.items()):
            if name not in paths or not table.is_of(paths[name]):
                retire(table)  # if that fails, again in the next update
                del self.by_name[name]
                self._dump_sockets.pop(name, None)
                table.close()
        for name, path in paths.items():
            if name in self.by_name:
                continue
            sockets = self._dump_sockets.get(name, ())
            table = Table(name, path, options.source, options.proc_root, sockets)
            self.by_name[name] = table
            if self.netns and options.configure_accounting:
                table.enable_accounting()

    def is_expected(self, table: Table) -> bool:
        """Return whether a table should exist, so that it is an error if it cannot be read.

        A namespace that --netns=all has found may be deleted at any time.
        """
        named = table.name in ("", *self._options.netns) or table.name in self._dump_sockets
        return named or namespace.exists(table.space.path)

    def labels(self, plan: Plan) -> tuple[str, ...]:
        """Return the labels of groups under a plan."""
        return (NETNS.name, *plan.labels) if self.netns else plan.labels

    def merge(self, tallies: Mapping[str, Tally]) -> Tally:
        """Merge tallies into one. tallies: by the name of their table."""
        if not self.netns:
            return tallies[""]
        # Imported here, as below: most runs read one table.
        from conntrack_textfile.merge import merge

        return merge(tallies)

    def key_parser(self, plan: Plan) -> Callable[[Group], bytes | None]:
        """Return a parser of groups to their keys in a merged tally; None where there is no key."""
        from conntrack_textfile.kernel import grouping

        parse = grouping.key_parser(plan)
        if not self.netns:
            return parse
        from conntrack_textfile import merge

        return merge.key_parser(parse)

    def close(self) -> None:
        """Close all tables, their event sockets included."""
        for table in self.by_name.values():
            table.close()
