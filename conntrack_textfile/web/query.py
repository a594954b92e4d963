"""The query of the page: which numbers, in which order, of whom."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.aggregate import MEASURES
from conntrack_textfile.labels import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Collection

# What the numbers of the tables are: of the last interval, of the last hour, of what is live.
BY = ("rate", "hour", "live")

_MAX_VALUE = 256  # bytes; names have less


class QueryError(ValueError):
    """A query that the page does not know."""


class Query(NamedTuple):
    """A view of the page."""

    by: str = ""  # of BY; "" for the first of them that there is
    sort: str = "bytes"  # of MEASURES
    only: tuple[tuple[str, str], ...] = ()  # labels, and the value that each must have

    def link(self) -> str:
        """The relative URL of this view."""
        parameters = [("by", self.by)] if self.by else []
        if self.sort != Query().sort:
            parameters.append(("sort", self.sort))
        return "?" + urllib.parse.urlencode([*parameters, *self.only])

    def at(self, label: str, value: str) -> Query:
        """The same of those alone where a label has a value."""
        return self._replace(only=(*self.without(label).only, (label, value)))

    def without(self, label: str) -> Query:
        """The same whatever the value of a label."""
        return self._replace(only=tuple([pair for pair in self.only if pair[0] != label]))


def parse(text: str, kept: Collection[str]) -> Query:
    """Read the part of a URL after "?". Raises QueryError with what is wrong, in words of ours.

    kept are the labels that the tables have.
    """
    try:
        pairs = urllib.parse.parse_qsl(
            text, keep_blank_values=True, strict_parsing=bool(text), errors="strict"
        )
    except ValueError:  # also an encoding that is not UTF-8's
        raise QueryError("the query is not of the form name=value&name=value in UTF-8") from None
    given: dict[str, str] = {}
    for name, value in pairs:
        if name not in ("by", "sort") and name not in BY_NAME:
            raise QueryError(f"an unknown name in the query: use by, sort, {', '.join(kept)}")
        if name in given:
            raise QueryError(f"{name} is given twice in the query")
        if len(value.encode()) > _MAX_VALUE:
            raise QueryError(f"{name} in the query is longer than {_MAX_VALUE} bytes")
        given[name] = value
    for name, known in (("by", BY), ("sort", MEASURES)):
        if name in given and given[name] not in known:
            raise QueryError(f"{name} in the query is one of {', '.join(known)}")
    by, sort = given.pop("by", Query().by), given.pop("sort", Query().sort)
    for name in given:
        if name not in kept:
            raise QueryError(f"{name} is not among the labels of --aggregate.by")
    return Query(by, sort, tuple(given.items()))
